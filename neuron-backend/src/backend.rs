//! The device as the engine sees it: steps in, candidates out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Axis, Backend, Candidates, Cause, Checker, Fault, Profile, Step, Ticket};
use graph::{Bucket, Form, Head, Packed, Packer};

use crate::fault;
use crate::nrt::NrtError;
use crate::rank::Rank;
use crate::ranks::{Flight, Hung, Lost, Ranks};

/// Steps in flight: while one runs, the next waits at the ranks.
const DEPTH: u32 = 2;

/// How many times the slowest of the latest steps a step may take.
const PATIENCE: u32 = 10;

/// How many steps count as the latest.
const LATEST: usize = 128;

/// How long a process with a hung device lives on, to tell its clients.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What a thread of a rank keeps: nothing, until it is opened.
pub(crate) type State = Option<Rank>;

/// What each rank answers to a step.
type Given = Result<Vec<Vec<f32>>, NrtError>;

/// A model opened on the cores of a replica.
#[derive(Debug)]
pub struct Neuron {
    profile: Profile,
    checker: Checker,
    packer: Packer,
    ranks: Ranks<State>,
    flights: VecDeque<InFlight>,
    submitted: u64,
    /// Packed steps that have landed, for their memory.
    spare: Vec<Packed>,
    watch: Watch,
}

#[derive(Debug)]
struct InFlight {
    ticket: Ticket,
    packed: Arc<Packed>,
    flight: Flight<Given>,
}

impl Neuron {
    /// The ranks have loaded the modules of `buckets`, in this order. A step that takes longer than
    /// `patience`, and many times as long as others, has hung.
    pub(crate) fn new(
        ranks: Ranks<State>,
        packer: Packer,
        form: &Form,
        buckets: &[Bucket],
        vocabulary: u32,
        patience: Duration,
    ) -> Self {
        Self {
            profile: profile(form, buckets, vocabulary),
            checker: Checker::default(),
            packer,
            ranks,
            flights: VecDeque::new(),
            submitted: 0,
            spare: Vec::new(),
            watch: Watch::new(patience),
        }
    }

    /// What the ranks gave for a step, if all of them did.
    fn landed(&mut self, flight: Flight<Given>) -> Result<Vec<Vec<f32>>, Fault> {
        let begun = flight.begun().max(self.watch.landed);
        let answers = flight.wait(self.watch.limit()).map_err(hang)?;
        self.watch.land(begun);
        let mut given = Vec::new();
        let mut worst = None;
        for answer in answers {
            match answer {
                // Only the first rank gives anything.
                Ok(Ok(rank)) if given.is_empty() => given = rank,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => worst = graver(worst, fault::of(&error)),
                Err(lost) => worst = graver(worst, gone(&lost)),
            }
        }
        worst.map_or(Ok(given), Err)
    }
}

impl Backend for Neuron {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, Fault> {
        if self.flights.len() >= DEPTH as usize {
            let why = format!("{DEPTH} steps are in flight, and no more may be: collect one first");
            return Err(Fault::Reject(Cause(why)));
        }
        self.checker.check(step, &self.profile)?;
        let mut packed = self.spare.pop().unwrap_or_default();
        let result = self.packer.pack(step, &mut packed);
        result.map_err(|error| Fault::Reject(Cause(error.to_string())))?;
        let packed = Arc::new(packed);
        let flight = {
            let packed = Arc::clone(&packed);
            self.ranks.begin(move |_, state| match state {
                Some(rank) => rank.run(&packed),
                None => Ok(Vec::new()),
            })
        };
        self.submitted += 1;
        self.flights.push_back(InFlight {
            ticket: Ticket(self.submitted),
            packed,
            flight,
        });
        Ok(Ticket(self.submitted))
    }

    fn collect(&mut self, ticket: Ticket, out: &mut Candidates) -> Result<(), Fault> {
        out.clear();
        let Some(oldest) = self.flights.pop_front_if(|oldest| oldest.ticket == ticket) else {
            let why = format!("step {} is not the oldest in flight", ticket.0);
            return Err(Fault::Reject(Cause(why)));
        };
        let InFlight { packed, flight, .. } = oldest;
        let given = self.landed(flight)?;
        let unpacked = packed.unpack(
            |launch| given.get(launch).map_or(&[][..], Vec::as_slice),
            out,
        );
        self.spare.extend(Arc::try_unwrap(packed));
        // Numbers that cannot be are this step's: the next may be well, and the device says more
        // if it is not.
        unpacked.map_err(|error| Fault::Reject(Cause(error.to_string())))
    }
}

/// What the modules of a bundle can run.
fn profile(form: &Form, buckets: &[Bucket], vocabulary: u32) -> Profile {
    let axis = |size: fn(Bucket) -> Option<u32>| {
        let mut sizes: Vec<_> = buckets.iter().copied().filter_map(size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    };
    let prefill = axis(|bucket| match bucket {
        Bucket::Step {
            rows,
            tokens: tokens @ 2..,
            head: Head::Last,
            ..
        } => Some(rows * tokens),
        _ => None,
    });
    let decode = axis(|bucket| match bucket {
        Bucket::Step {
            rows,
            tokens: 1,
            head: Head::Last,
            ..
        } => Some(rows),
        _ => None,
    });
    let pages = axis(|bucket| match bucket {
        Bucket::Step {
            tokens: 1, pages, ..
        } => Some(pages),
        _ => None,
    });
    let context = pages.into_iter().map(|pages| pages * form.page_tokens);
    let mut context: Vec<_> = context
        .filter(|positions| *positions < form.context)
        .collect();
    context.push(form.context);
    Profile {
        prefill: Axis::Buckets(prefill.into()),
        decode: Axis::Buckets(decode.into()),
        context: Axis::Buckets(context.into()),
        mixed: false,
        page_tokens: form.page_tokens,
        // The modules' page 0 is nobody's.
        pages: form.pages - 1,
        vocabulary,
        candidates: form.candidates,
        depth: DEPTH,
    }
}

/// Of two faults the one that asks for more.
fn graver(one: Option<Fault>, other: Fault) -> Option<Fault> {
    let gravity = |fault: &Fault| match fault {
        Fault::Retry(_) => 0,
        Fault::Reject(_) => 1,
        Fault::Restart(_) => 2,
    };
    match one {
        Some(one) if gravity(&one) >= gravity(&other) => Some(one),
        _ => Some(other),
    }
}

fn gone(lost: &Lost) -> Fault {
    Fault::Restart(Cause(lost.to_string()))
}

/// A call of the runtime that hangs cannot be cancelled, and not even the process ends by itself with
/// it: it is given time for its last words, and then aborted.
fn hang(hung: Hung) -> Fault {
    let state = crate::threads::describe();
    tracing::error!("{hung}; the process is aborted in {LAST_WORDS:?}. Its threads: {state}");
    std::thread::spawn(|| {
        std::thread::sleep(LAST_WORDS);
        std::process::abort();
    });
    Fault::Restart(Cause(hung.to_string()))
}

/// How long steps take, and from when on one has hung.
#[derive(Debug)]
struct Watch {
    /// The least that a step may take.
    patience: Duration,
    latest: VecDeque<Duration>,
    /// When the last step landed.
    landed: Instant,
}

impl Watch {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            latest: VecDeque::with_capacity(LATEST),
            landed: Instant::now(),
        }
    }

    fn limit(&self) -> Duration {
        let slowest = self.latest.iter().max().copied().unwrap_or_default();
        self.patience.max(slowest * PATIENCE)
    }

    /// A step has landed that ran from `begun` on.
    fn land(&mut self, begun: Instant) {
        if self.latest.len() == LATEST {
            self.latest.pop_front();
        }
        self.landed = Instant::now();
        self.latest.push_back(self.landed - begun);
    }
}
