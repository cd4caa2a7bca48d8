//! A device that runs lowered modules: XLA's plugin for the CPU, a device for each rank.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use graph::{Bucket, Content, Form, Head, Ints, Layout, Module, Tiles, WeightFormat};
use model::{Decoder, Weights};
use pjrt::{Buffer, Client, CompileOptions, Element, Executable, Plugin, Value};

use crate::rewrite::with_top_k_of_xla;
use crate::upload;

/// The most ranks that a test joins.
const DEVICES: i64 = 8;

/// XLA's devices, or a word that they are not there.
pub(crate) fn client() -> Option<&'static Client> {
    static CLIENT: OnceLock<Option<Client>> = OnceLock::new();
    let client = CLIENT.get_or_init(|| {
        let path = std::env::var_os("APPLIANCE_XLA_CPU")?;
        let plugin = Plugin::open(Path::new(&path)).expect("XLA's plugin");
        let options = [("cpu_device_count", Value::Integer(DEVICES))];
        Some(plugin.client(&options).expect("XLA's devices"))
    });
    if client.is_none() {
        eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
    }
    client.as_ref()
}

/// A row of a step, as a test thinks of it.
#[derive(Clone, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) tokens: &'a [u32],
    /// The position of the first.
    pub(crate) start: usize,
    /// The module's pages of the sequence, from position 0.
    pub(crate) pages: &'a [u32],
    /// For each entry the token that is asked for.
    pub(crate) targets: Vec<u32>,
    /// For each entry the words of its mask; empty allows all.
    pub(crate) masks: Vec<Vec<u32>>,
}

impl<'a> Row<'a> {
    pub(crate) fn new(tokens: &'a [u32], start: usize, pages: &'a [u32]) -> Self {
        Self {
            tokens,
            start,
            pages,
            targets: Vec::new(),
            masks: Vec::new(),
        }
    }
}

/// An entry that a step gave.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Entry {
    /// Ids and log-probabilities, as they came.
    pub(crate) best: Vec<(u32, f32)>,
    pub(crate) normalizer: f32,
    pub(crate) target: f32,
}

impl Entry {
    /// The logit of each token; the device must have been asked for all.
    pub(crate) fn logits(&self) -> Vec<f32> {
        let mut logits = vec![f32::NAN; self.best.len()];
        for (id, logprob) in &self.best {
            logits[*id as usize] = logprob + self.normalizer;
        }
        logits
    }
}

/// A model on the device: weights and caches of all ranks, and the modules that were needed so far.
#[derive(Debug)]
pub(crate) struct Device {
    client: &'static Client,
    pub(crate) decoder: Decoder,
    pub(crate) form: Form,
    pub(crate) tiles: Tiles,
    programs: HashMap<Bucket, (Layout, Executable)>,
    /// For each rank what is written once.
    constants: Vec<HashMap<Content, Buffer>>,
    /// For each rank keys and values, in the order of the layout.
    caches: Vec<Vec<Buffer>>,
}

impl Device {
    /// Puts the model in `path` on `form.ranks` devices.
    pub(crate) fn open(path: &Path, form: &Form) -> Option<Self> {
        Self::rounded(path, form, None)
    }

    /// The same with matrices as they would be in another format, exactly.
    pub(crate) fn rounded(path: &Path, form: &Form, format: Option<WeightFormat>) -> Option<Self> {
        client()?;
        let decoder = Decoder::open(path).expect("a configuration");
        let weights = Weights::open(path, &decoder).expect("a checkpoint");
        let constant = |rank: u32, port: &graph::Port| {
            upload::bytes(&decoder, form, &weights, rank, port.content, format)
        };
        Self::new(&decoder, form, &constant)
    }

    /// The same, for what `constant` says that a rank's inputs hold that are written once.
    pub(crate) fn new(
        decoder: &Decoder,
        form: &Form,
        constant: &dyn Fn(u32, &graph::Port) -> Vec<u8>,
    ) -> Option<Self> {
        let mut device = Self {
            client: client()?,
            decoder: decoder.clone(),
            form: form.clone(),
            tiles: Tiles::default(),
            programs: HashMap::new(),
            constants: Vec::new(),
            caches: Vec::new(),
        };
        let bucket = Bucket::Step {
            rows: 1,
            tokens: 1,
            pages: 0,
            head: Head::Last,
        };
        let layout = device.lower(bucket).layout;
        for rank in 0..device.form.ranks {
            let mut constants = HashMap::new();
            let mut caches = Vec::new();
            for port in &layout.inputs {
                match port.content {
                    Content::Ints | Content::Masks => {}
                    Content::Keys(_) | Content::Values(_) => {
                        let zeros = vec![0; size(port.bytes())];
                        caches.push(device.buffer(rank, port, &zeros));
                    }
                    content => {
                        let buffer = device.buffer(rank, port, &constant(rank, port));
                        constants.insert(content, buffer);
                    }
                }
            }
            device.constants.push(constants);
            device.caches.push(caches);
        }
        Some(device)
    }

    fn buffer(&self, rank: u32, port: &graph::Port, bytes: &[u8]) -> Buffer {
        let device = self.client.devices()[rank as usize];
        let element = Element::from_hlo(port.element.number()).expect("an element of XLA's");
        let dims: Vec<_> = port.shape.iter().map(|size| i64::from(*size)).collect();
        let buffer = self.client.buffer(device, element, &dims, bytes);
        buffer.unwrap_or_else(|error| panic!("{}: {error}", port.name))
    }

    fn lower(&self, bucket: Bucket) -> Module {
        graph::lower_in_tiles(&self.decoder, &self.form, bucket, &self.tiles).expect("a module")
    }

    fn program(&mut self, bucket: Bucket) {
        if self.programs.contains_key(&bucket) {
            return;
        }
        let module = self.lower(bucket);
        let options = CompileOptions {
            replicas: self.form.ranks,
            ..CompileOptions::default()
        };
        // What is compiled runs a few times only.
        let options = options.flag("xla_backend_optimization_level", Value::Integer(0));
        let proto = with_top_k_of_xla(module.proto);
        let program = self.client.compile(&proto.to_bytes(), &options);
        let program = program.unwrap_or_else(|error| panic!("{}: {error}", bucket.name()));
        self.programs.insert(bucket, (module.layout, program));
    }

    /// Runs the module of `bucket` and gives what it gives besides the caches, on each rank.
    fn run(&mut self, bucket: Bucket, ints: &[i32], masks: &[u32]) -> Vec<Vec<f32>> {
        self.program(bucket);
        let ints: Vec<_> = ints.iter().flat_map(|int| int.to_le_bytes()).collect();
        let (layout, program) = &self.programs[&bucket];
        let ranks = 0..self.form.ranks;
        let fresh: Vec<_> = ranks
            .clone()
            .map(|rank| {
                let part = self.masks_of(masks, bucket, rank);
                let fresh = layout.inputs.iter().filter_map(|port| match port.content {
                    Content::Ints => Some(self.buffer(rank, port, &ints)),
                    Content::Masks => Some(self.buffer(rank, port, &part)),
                    _ => None,
                });
                fresh.collect::<Vec<_>>()
            })
            .collect();
        let arguments: Vec<_> = ranks
            .map(|rank| self.arguments(layout, rank as usize, &fresh[rank as usize]))
            .collect();
        let results = program.execute(&arguments).expect("a run");
        let mut given = Vec::new();
        for (rank, mut outputs) in results.into_iter().enumerate() {
            let caches = layout.aliases.len();
            let first_cache = outputs.len() - caches;
            self.caches[rank] = outputs.split_off(first_cache);
            let port = layout.outputs[..first_cache].first();
            given.push(match port {
                Some(port) => floats(&outputs[0], port),
                None => Vec::new(),
            });
        }
        given
    }

    fn arguments<'a>(
        &'a self,
        layout: &Layout,
        rank: usize,
        fresh: &'a [Buffer],
    ) -> Vec<&'a Buffer> {
        let mut fresh = fresh.iter();
        let mut caches = self.caches[rank].iter();
        let argument = |port: &graph::Port| match port.content {
            Content::Ints | Content::Masks => fresh.next(),
            Content::Keys(_) | Content::Values(_) => caches.next(),
            content => self.constants[rank].get(&content),
        };
        let arguments = layout.inputs.iter().map(argument);
        arguments.map(|one| one.expect("a buffer")).collect()
    }

    /// A rank's words of the masks of all entries, whose words run over the whole vocabulary.
    fn masks_of(&self, masks: &[u32], bucket: Bucket, rank: u32) -> Vec<u8> {
        let cut = graph::Cut::of(&self.decoder, self.form.ranks).expect("a cut");
        let words = (cut.vocabulary / 32) as usize;
        let all = words * self.form.ranks as usize;
        let mut bytes = Vec::new();
        for entry in 0..bucket.entries() as usize {
            let own = &masks[entry * all..][..all][rank as usize * words..][..words];
            bytes.extend(own.iter().flat_map(|word| word.to_le_bytes()));
        }
        bytes
    }

    /// Runs a step; the entries of its rows, without those of padding. All ranks must agree.
    pub(crate) fn step(&mut self, bucket: Bucket, rows: &[Row<'_>]) -> Vec<Entry> {
        let width = self.form.candidates as usize;
        let given = self.floats(bucket, rows);
        let entries = given.chunks_exact(2 * width + 2).map(|entry| {
            let (ids, rest) = entry.split_at(width);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "ids are whole numbers"
            )]
            let ids = ids.iter().map(|id| *id as u32);
            Entry {
                best: ids.zip(rest.iter().copied()).collect(),
                normalizer: rest[width],
                target: rest[width + 1],
            }
        });
        let entries: Vec<_> = entries.collect();
        let Bucket::Step { tokens, head, .. } = bucket else {
            panic!("a step");
        };
        match head {
            Head::Each => {
                let of_rows = entries.chunks(tokens as usize).zip(rows);
                let of_rows = of_rows.map(|(entries, row)| &entries[..row.tokens.len()]);
                of_rows.collect::<Vec<_>>().concat()
            }
            _ => entries[..rows.len()].to_vec(),
        }
    }

    /// What a step gives, as it is. All ranks must agree.
    pub(crate) fn floats(&mut self, bucket: Bucket, rows: &[Row<'_>]) -> Vec<f32> {
        let (ints, masks) = self.packed(bucket, rows);
        let mut given = self.run(bucket, &ints, &masks);
        let first = given.swap_remove(0);
        for other in given {
            assert_eq!(first, other, "ranks give the same");
        }
        first
    }

    /// Copies whole pages, each `(from, to)`.
    pub(crate) fn copy(&mut self, pairs: u32, copies: &[(u32, u32)]) {
        let bucket = Bucket::Copy { pairs };
        let places = Ints::of(bucket);
        let mut ints = vec![0; places.len];
        for (at, (from, to)) in copies.iter().enumerate() {
            ints[places.tables.start + at] = from.cast_signed();
            ints[places.slots.start + at] = to.cast_signed();
        }
        self.run(bucket, &ints, &[]);
    }

    /// The bytes of all caches, rank after rank.
    pub(crate) fn cache_bytes(&self) -> Vec<Vec<u8>> {
        let caches = self.caches.iter().flatten();
        let bytes = caches.map(|cache| {
            let dims = cache.dims().expect("dimensions");
            let elements: i64 = dims.iter().product();
            let element = cache.element().expect("an element");
            let mut bytes = vec![0; usize::try_from(elements).expect("a size") * element.bytes()];
            cache.to_host(&mut bytes).expect("a cache");
            bytes
        });
        bytes.collect()
    }

    /// The integers and the masks of a step.
    fn packed(&self, bucket: Bucket, rows: &[Row<'_>]) -> (Vec<i32>, Vec<u32>) {
        let Bucket::Step {
            tokens,
            pages,
            head,
            ..
        } = bucket
        else {
            panic!("a step");
        };
        let (tokens, pages) = (tokens as usize, pages as usize);
        let places = Ints::of(bucket);
        let mut ints = vec![0_i32; places.len];
        let page_tokens = self.form.page_tokens as usize;
        ints[places.lengths.clone()].fill(1);
        let mut padded = (1..page_tokens).cycle();
        for slot in &mut ints[places.slots.clone()] {
            *slot = i32::try_from(padded.next().expect("no end")).expect("a slot");
        }
        for (at, row) in rows.iter().enumerate() {
            ints[places.starts.start + at] = i32::try_from(row.start).expect("a position");
            ints[places.lengths.start + at] = i32::try_from(row.tokens.len()).expect("a length");
            for (token, id) in row.tokens.iter().enumerate() {
                let position = row.start + token;
                let page = row.pages[position / page_tokens] as usize;
                let slot = page * page_tokens + position % page_tokens;
                ints[places.tokens.start + at * tokens + token] = id.cast_signed();
                ints[places.slots.start + at * tokens + token] =
                    i32::try_from(slot).expect("a slot");
            }
            let before = row.start.div_ceil(page_tokens);
            assert!(before <= pages, "the bucket has too few pages");
            for (place, page) in row.pages[..before].iter().enumerate() {
                ints[places.tables.start + at * pages + place] = page.cast_signed();
            }
            let each = if head == Head::Each { tokens } else { 1 };
            for (place, target) in row.targets.iter().enumerate() {
                ints[places.targets.start + at * each + place] = target.cast_signed();
            }
        }
        (ints, self.packed_masks(bucket, rows, tokens))
    }

    fn packed_masks(&self, bucket: Bucket, rows: &[Row<'_>], tokens: usize) -> Vec<u32> {
        let Bucket::Step { head, .. } = bucket else {
            panic!("a step");
        };
        let cut = graph::Cut::of(&self.decoder, self.form.ranks).expect("a cut");
        let words = (cut.vocabulary / 32 * self.form.ranks) as usize;
        let mut masks = vec![u32::MAX; words * bucket.entries() as usize];
        let each = if head == Head::Each { tokens } else { 1 };
        for (at, row) in rows.iter().enumerate() {
            for (place, mask) in row.masks.iter().enumerate() {
                let own = &mut masks[(at * each + place) * words..][..words];
                own.fill(0);
                own[..mask.len()].copy_from_slice(mask);
            }
        }
        masks
    }
}

fn floats(buffer: &Buffer, port: &graph::Port) -> Vec<f32> {
    let mut bytes = vec![0; size(port.bytes())];
    buffer.to_host(&mut bytes).expect("an output");
    let (numbers, _) = bytes.as_chunks::<4>();
    numbers
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a size of this machine's")
}
