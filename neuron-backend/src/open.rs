//! From a bundle to devices that take steps. Nothing is compiled here: what is missing is refused,
//! with the command that makes it, before the device is touched.

use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, SendError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use engine::Demand;
use graph::{Bucket, Form, FormError, KvFormat, Packer, Port, Target, WeightFormat};
use model::{Decoder, ReadError, Weights};

use crate::artifact::{Bundle, Need, Store, StoreError};
use crate::backend::{Neuron, State};
use crate::fault;
use crate::nrt::{self, InstanceInfo, Libnrt, NrtError, Runtime, Settings, StartError};
use crate::rank::{Module, Piece, Rank, is_shared};
use crate::ranks::{self, Flight, Lost, Places, Ranks};
use crate::weights::{Source, WriteError, Writer};

/// The variable that says how many physical cores make a logical one.
const LOGICAL: &str = "NEURON_LOGICAL_NC_CONFIG";

/// How long ranks may go on once one has failed: they may wait for it for ever.
const AFTER_A_FAILURE: Duration = Duration::from_secs(10);

/// Pieces that wait for a rank while it writes one.
const WAITING: usize = 1;

/// What is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The model's source, for the words of a refusal.
    pub source: &'a str,
    /// The model.
    pub decoder: &'a Decoder,
    /// Its weights.
    pub weights: &'a Weights,
    /// Where its modules are.
    pub store: &'a Store,
    /// How weights are to be held; `None` takes what was prepared.
    pub format: Option<WeightFormat>,
    /// How keys and values are held; `None` takes what was prepared.
    pub kv: Option<KvFormat>,
    /// What is wanted.
    pub demand: &'a Demand,
    /// How many devices, each on cores of its own.
    pub replicas: u32,
    /// How long a step may take at the least, before it counts as hung.
    pub patience: Duration,
}

/// Why a model was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The runtime is not installed, or not one that can be used.
    #[error(transparent)]
    Library(#[from] nrt::OpenError),
    /// The runtime does not know where it is.
    #[error("{0}. Is the driver loaded? `ls /dev/neuron*` and `modinfo neuron` tell")]
    Instance(NrtError),
    /// An instance that this version does not know.
    #[error(
        "the runtime says family {} of {}, which this version does not know: it serves Inferentia2, \
         Trainium1, Trainium2 and Trainium3",
        .0.family, .0.architecture
    )]
    Unknown(InstanceInfo),
    /// The environment says something senseless.
    #[error("{LOGICAL} is {value:?}, and {target} has logical cores of {allowed:?} physical ones")]
    Logical {
        /// What it says.
        value: String,
        /// The device.
        target: Target,
        /// What it may say.
        allowed: &'static [u32],
    },
    /// More cores are needed than there are.
    #[error(
        "{replicas} replicas on {cores} cores leave none for some: ask for fewer with --replicas"
    )]
    Cores {
        /// How many were asked for.
        replicas: u32,
        /// Logical cores of the instance.
        cores: u32,
    },
    /// No bundle can be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A module cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Its file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The weights cannot be read, or are not those that were stored.
    #[error(transparent)]
    Weights(#[from] ReadError),
    /// The process has to be started again with these variables: nothing has been touched.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The bundle is of a form that this model cannot have.
    #[error(transparent)]
    Form(#[from] FormError),
    /// No threads.
    #[error(transparent)]
    Threads(#[from] ranks::StartError),
    /// A rank failed.
    #[error("{what}: {why}. {}", advice(.why))]
    Rank {
        /// What was being done.
        what: &'static str,
        /// What the runtime said.
        why: NrtError,
    },
    /// A rank is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl OpenError {
    /// The variables that the process has to be started again with, if that is all that is wrong.
    pub fn environment(&self) -> Option<&[(&'static str, OsString)]> {
        match self {
            Self::Start(StartError::Environment(variables)) => Some(variables),
            _ => None,
        }
    }

    /// The arguments of the command that makes the bundle which is missing, if that is all that is wrong.
    pub fn unprepared(&self) -> Option<&[String]> {
        match self {
            Self::Store(StoreError::Absent { arguments, .. }) => Some(arguments),
            _ => None,
        }
    }

    /// Whether it is the device that failed, rather than what it was asked for: another start may find
    /// it well.
    pub fn is_of_device(&self) -> bool {
        match self {
            Self::Rank { why, .. } => !LASTING.contains(&why.status),
            Self::Start(StartError::Refused(_)) | Self::Lost(_) => true,
            _ => false,
        }
    }
}

/// What a call comes to that fails in the same way each time.
const LASTING: [nrt::Status; 7] = [
    nrt::Status::INVALID,
    nrt::Status::RESOURCE,
    nrt::Status::LOAD_NOT_ENOUGH_NC,
    nrt::Status::UNSUPPORTED_NEFF_VERSION,
    nrt::Status::EXEC_BAD_INPUT,
    nrt::Status::EXEC_COMPLETED_WITH_NUM_ERR,
    nrt::Status::EXEC_OOB,
];

/// What to do about it.
fn advice(why: &NrtError) -> String {
    let told = match why.status {
        nrt::Status::RESOURCE => {
            "To do: the device's memory is full: prepare the model with fewer KV pages (--kv-pages), fewer \
             or smaller buckets, more ranks (--tp) or --dtype fp8"
        }
        nrt::Status::UNSUPPORTED_NEFF_VERSION | nrt::Status::INVALID => {
            "To do: prepare the model again, with the compiler of the SDK that the runtime is of"
        }
        nrt::Status::LOAD_NOT_ENOUGH_NC => {
            "To do: prepare the model for fewer ranks (--tp), or ask for fewer --replicas"
        }
        other => return fault::to_do(other),
    };
    told.to_owned()
}

/// The device as it is set up.
#[derive(Clone, Copy, Debug)]
struct Here {
    target: Target,
    lnc: u32,
    /// Logical cores of the instance.
    cores: u32,
}

/// Opens the bundle that suits best, on as many groups of cores as there are replicas.
///
/// # Errors
/// Whatever keeps the model from running here, with what to do. Where it is the environment of the
/// process, [`OpenError::environment`] says what it has to be.
pub fn open(opening: &Opening<'_>) -> Result<Vec<Neuron>, OpenError> {
    let libnrt = Libnrt::open(None)?;
    let (here, bundle, settings) = choose(opening, &libnrt)?;
    let form = &bundle.manifest().form;
    tracing::info!(
        target = here.target.name(),
        runtime = %libnrt.version(),
        compiler = bundle.manifest().compiler.version,
        bundle = %bundle.directory().display(),
        ranks = form.ranks,
        replicas = opening.replicas,
        "opening"
    );
    let runtime = Runtime::shared(libnrt, &settings)?;
    let replicas = (0..opening.replicas.max(1)).map(|replica| {
        let first = replica * form.ranks;
        replica_on(&runtime, opening, &bundle, here, first..first + form.ranks)
    });
    replicas.collect()
}

/// Finds out all that can be known of whether [`open`] would do, without touching the device.
///
/// # Errors
/// As for [`open`].
pub fn check(opening: &Opening<'_>) -> Result<(), OpenError> {
    let (_, _, settings) = choose(opening, &Libnrt::open(None)?)?;
    match settings.missing() {
        missing if missing.is_empty() => Ok(()),
        missing => Err(StartError::Environment(missing).into()),
    }
}

/// The bundle that suits best, verified, and how the runtime has to be started for it.
fn choose(opening: &Opening<'_>, libnrt: &Libnrt) -> Result<(Here, Bundle, Settings), OpenError> {
    let here = here(libnrt)?;
    let each = here.cores / opening.replicas.max(1);
    if each == 0 {
        return Err(OpenError::Cores {
            replicas: opening.replicas,
            cores: here.cores,
        });
    }
    let bundle = opening.store.find(&Need {
        source: opening.source,
        decoder: opening.decoder,
        target: here.target,
        lnc: here.lnc,
        cores: each,
        weights: opening.format,
        kv: opening.kv,
        demand: opening.demand,
    })?;
    let ranks = bundle.manifest().form.ranks;
    let settings = Settings {
        refuse_nan: true,
        ..Settings::new(0..ranks * opening.replicas.max(1), here.lnc)
    };
    Ok((here, bundle, settings))
}

/// Asks the runtime what is here.
fn here(libnrt: &Libnrt) -> Result<Here, OpenError> {
    let instance = libnrt.instance().map_err(OpenError::Instance)?;
    let target = instance.target();
    let target = target.ok_or(OpenError::Unknown(instance))?;
    let allowed = target.facts().logical;
    let lnc = match std::env::var(LOGICAL) {
        Ok(value) => {
            let known = value.parse().ok().filter(|lnc| allowed.contains(lnc));
            known.ok_or(OpenError::Logical {
                value,
                target,
                allowed,
            })?
        }
        Err(_) => target.default_logical(),
    };
    Ok(Here {
        target,
        lnc,
        cores: libnrt.total_cores().map_err(OpenError::Instance)?,
    })
}

/// Opens one replica on these cores.
fn replica_on(
    runtime: &Runtime,
    opening: &Opening<'_>,
    bundle: &Bundle,
    here: Here,
    cores: Range<u32>,
) -> Result<Neuron, OpenError> {
    let manifest = bundle.manifest();
    let form = &manifest.form;
    let buckets: Vec<_> = manifest
        .modules
        .iter()
        .map(|module| module.bucket)
        .collect();
    let packer = Packer::new(opening.decoder, form, &buckets)?;
    let places = places(here, cores.clone());
    let mut ranks: Ranks<State> = Ranks::start(form.ranks as usize, &places, |_| None)?;
    let ports = shared_ports(bundle);
    allocate(&mut ranks, runtime, cores.start, &ports)?;
    upload(&mut ranks, opening, form, &ports)?;
    load(&mut ranks, bundle)?;
    let warm: Arc<[Bucket]> = buckets.clone().into();
    on_each(&mut ranks, "warming up", move |_, rank| rank.warm(&warm))?;
    for core in cores {
        if let Ok(Some(memory)) = runtime.memory(core) {
            let (used_mib, limit_mib) = (memory.used >> 20, memory.limit >> 20);
            tracing::info!(core, used_mib, limit_mib, "device memory");
        }
    }
    let vocabulary = opening.decoder.vocabulary;
    Ok(Neuron::new(
        ranks,
        packer,
        form,
        &buckets,
        vocabulary,
        opening.patience,
    ))
}

/// Threads near the chips of their cores.
fn places(here: Here, cores: Range<u32>) -> Places {
    let chip = here.target.facts().logical_cores(here.lnc);
    Places::near(Path::new("/sys"), here.target, cores, chip)
}

/// What all modules of a rank have in common.
fn shared_ports(bundle: &Bundle) -> Arc<[Port]> {
    let mut ports: Vec<Port> = Vec::new();
    for module in &bundle.manifest().modules {
        for port in module.layout.inputs.iter().filter(|port| is_shared(port)) {
            if !ports.iter().any(|known| known.name == port.name) {
                ports.push(port.clone());
            }
        }
    }
    ports.into()
}

fn allocate(
    ranks: &mut Ranks<State>,
    runtime: &Runtime,
    first: u32,
    ports: &Arc<[Port]>,
) -> Result<(), OpenError> {
    let (ports, count) = (Arc::clone(ports), ranks.count());
    let runtime = runtime.clone();
    let made = ranks.begin(move |index, state| {
        // There are fewer ranks than cores.
        let place = nrt::Rank {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            count: u32::try_from(count).unwrap_or(u32::MAX),
        };
        *state = Some(Rank::new(&runtime, first + place.index, place, &ports)?);
        Ok(())
    });
    checked("making room for weights and KV", &made)
}

/// Writes the weights: for each rank a thread here makes pieces, and the rank's own writes them.
fn upload(
    ranks: &mut Ranks<State>,
    opening: &Opening<'_>,
    form: &Form,
    ports: &Arc<[Port]>,
) -> Result<(), OpenError> {
    let start = Instant::now();
    let mut source = Source::new(opening.decoder, opening.weights, form)?;
    source.read_ahead(ports.iter().map(|port| port.content))?;
    let source = &source;
    let channels = (0..ranks.count()).map(|_| sync_channel(WAITING));
    let (senders, receivers): (Vec<_>, Vec<_>) = channels.unzip();
    let receivers: Vec<Mutex<Option<Receiver<Piece>>>> = receivers
        .into_iter()
        .map(|receiver| Mutex::new(Some(receiver)))
        .collect();
    let flight = ranks.begin(move |index, state| {
        let mut receiver = receivers[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match (state, receiver.take()) {
            (Some(rank), Some(pieces)) => rank.write(&pieces),
            _ => Ok(()),
        }
    });
    let made = thread::scope(|scope| {
        let writers: Vec<_> = (0..)
            .zip(senders)
            .map(|(rank, pieces)| {
                let mut writer = source.writer(rank);
                scope.spawn(move || {
                    let made = make(&mut writer, ports, &pieces);
                    // One that could not read has ended the reading for all.
                    if let Err(WriteError::Sink(_)) = made {
                        source.give_up();
                    }
                    made
                })
            })
            .collect();
        let made = writers
            .into_iter()
            .map(|writer| writer.join().unwrap_or(Ok(0)));
        made.collect::<Vec<_>>()
    });
    checked("writing the weights", &flight)?;
    let mut bytes = 0;
    for made in made {
        match made {
            Ok(written) => bytes += written,
            Err(WriteError::Read(error)) => return Err(error.into()),
            // Its rank has ended, and said why.
            Err(WriteError::Sink(_)) => {}
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    tracing::info!(mib = bytes >> 20, seconds, "weights written");
    Ok(())
}

/// Makes the pieces of a rank, until it takes no more: it says itself why. Gives their bytes.
fn make(
    writer: &mut Writer<'_>,
    ports: &[Port],
    pieces: &SyncSender<Piece>,
) -> Result<u64, WriteError<SendError<Piece>>> {
    let mut bytes = 0;
    for port in ports {
        let name: Arc<str> = port.name.as_str().into();
        bytes += writer.write(port.content, |offset, bytes| {
            pieces.send(Piece {
                port: Arc::clone(&name),
                offset,
                bytes: bytes.to_vec(),
            })
        })?;
    }
    Ok(bytes)
}

fn load(ranks: &mut Ranks<State>, bundle: &Bundle) -> Result<(), OpenError> {
    for module in &bundle.manifest().modules {
        let start = Instant::now();
        let path = bundle.neff(module.bucket);
        let neff = fs::read(&path).map_err(|source| OpenError::Read {
            path: path.display().to_string(),
            source,
        })?;
        let module = Arc::new(Module {
            bucket: module.bucket,
            layout: module.layout.clone(),
            neff,
        });
        let name = module.bucket.name();
        on_each(ranks, "loading a module", move |_, rank| rank.load(&module))?;
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(module = name, seconds, "loaded");
    }
    Ok(())
}

fn on_each(
    ranks: &mut Ranks<State>,
    what: &'static str,
    job: impl Fn(usize, &mut Rank) -> Result<(), NrtError> + Send + Sync + 'static,
) -> Result<(), OpenError> {
    let done = ranks.begin(move |index, state| match state {
        Some(rank) => job(index, rank),
        None => Ok(()),
    });
    checked(what, &done)
}

/// Waits for all ranks; the first thing that went wrong.
fn checked(what: &'static str, flight: &Flight<Result<(), NrtError>>) -> Result<(), OpenError> {
    let results = match flight.wait_unless(Result::is_err, AFTER_A_FAILURE) {
        Ok(results) => results,
        Err(hung) => {
            tracing::error!("{what}: {hung}");
            let given = flight.given().into_iter();
            given.map(|(_, answer)| answer).collect()
        }
    };
    for result in results {
        result?.map_err(|why| OpenError::Rank { what, why })?;
    }
    Ok(())
}
