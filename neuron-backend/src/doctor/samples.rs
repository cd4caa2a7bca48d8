//! The small modules that a device is examined with: each asks one question of the compiler and of
//! the device, in the words that the lowering of a decoder uses.

use graph::build::{Binary, BuildError, Builder, Contraction, Value};
use graph::proto::HloModule;
use graph::{Alias, Element};

/// Rows of most arrays: what the device's partitions are.
pub(super) const ROWS: u32 = 128;
/// Columns of most arrays.
pub(super) const COLUMNS: u32 = 512;
/// What products are summed over.
pub(super) const SUMMED: u32 = 256;
/// Rows that are looked at after one was written in place.
pub(super) const LOOKED_AT: u32 = 4;
/// Positions of a page of the sample cache.
pub(super) const PAGE_TOKENS: u32 = 16;
/// Its pages, the null page included.
pub(super) const PAGES: u32 = 32;
/// Numbers of a position.
pub(super) const WIDTH: u32 = 128;
/// Positions that are written at once.
pub(super) const WRITTEN: u32 = 8;
/// Pages that are gathered at once.
pub(super) const GATHERED: u32 = 4;
/// Rows of logits.
pub(super) const ENTRIES: u32 = 8;
/// Columns of logits: the most that the device's top-K takes.
pub(super) const LOGITS: u32 = graph::TOP_K_COLUMNS;
/// Of those, how many are wanted: the most that a bundle may have.
pub(super) const WANTED: u32 = graph::MAX_CANDIDATES;

/// What a module takes or gives.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: &'static str,
    pub(super) element: Element,
    pub(super) dims: Vec<u32>,
}

impl Port {
    pub(super) fn bytes(&self) -> usize {
        let count: u64 = self.dims.iter().map(|size| u64::from(*size)).product();
        usize::try_from(count * self.element.bytes()).unwrap_or(usize::MAX)
    }
}

/// A module with what it takes and gives. An output that has an input's name shares its memory.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Its name, unique.
    pub(super) name: String,
    /// Ranks that run it together.
    pub(super) ranks: u32,
    /// Whether it holds FP8, so that the compiler needs the flag for it.
    pub(super) is_fp8: bool,
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    pub(super) module: HloModule,
}

/// The samples for a device with so many logical cores.
///
/// # Errors
/// A module that cannot be built: a mistake in this file.
pub(super) fn all(cores: u32) -> Result<Vec<Sample>, BuildError> {
    let mut samples = vec![
        add()?,
        product()?,
        in_place()?,
        pages()?,
        largest(WANTED)?,
        largest(1)?,
        fp8()?,
    ];
    for ranks in groups(cores) {
        samples.push(sum(ranks)?);
    }
    Ok(samples)
}

/// Sizes of the groups of ranks that are tried: two, and all.
pub(super) fn groups(cores: u32) -> Vec<u32> {
    let mut groups = vec![2, cores];
    groups.retain(|ranks| (2..=cores).contains(ranks));
    groups.dedup();
    groups
}

/// What a sum over so many ranks is called.
pub(super) fn sum_name(ranks: u32) -> String {
    format!("sum-{ranks}")
}

/// What the greatest so many of a row are called.
pub(super) fn largest_name(wanted: u32) -> String {
    format!("largest-{wanted}")
}

/// A module as it is written down, a parameter after the other.
struct Draft {
    name: String,
    builder: Builder,
    inputs: Vec<Port>,
    outputs: Vec<(Port, Value)>,
    is_fp8: bool,
}

impl Draft {
    fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            builder: Builder::new(format!("doctor-{name}")),
            name,
            inputs: Vec::new(),
            outputs: Vec::new(),
            is_fp8: false,
        }
    }

    fn take(
        &mut self,
        name: &'static str,
        element: Element,
        dims: &[u32],
    ) -> Result<Value, BuildError> {
        self.take_as(name, name, element, dims)
    }

    /// An input whose memory an output of this name shares.
    fn keep(
        &mut self,
        name: &'static str,
        element: Element,
        dims: &[u32],
    ) -> Result<Value, BuildError> {
        let neff_name = format!("{name}.must_alias_input");
        self.take_as(name, &neff_name, element, dims)
    }

    fn take_as(
        &mut self,
        name: &'static str,
        neff_name: &str,
        element: Element,
        dims: &[u32],
    ) -> Result<Value, BuildError> {
        self.is_fp8 |= element == Element::F8e4m3fn;
        self.inputs.push(Port {
            name,
            element,
            dims: dims.to_vec(),
        });
        self.builder.parameter(name, neff_name, element, dims)
    }

    fn give(&mut self, name: &'static str, value: Value) {
        let port = Port {
            name,
            element: value.element(),
            dims: value.dims().to_vec(),
        };
        self.outputs.push((port, value));
    }

    fn done(self, ranks: u32) -> Result<Sample, BuildError> {
        let inputs = self.inputs.iter().enumerate();
        let aliases: Vec<_> = inputs
            .filter_map(|(input, port)| {
                let mut outputs = self.outputs.iter();
                let output = outputs.position(|(given, _)| given.name == port.name)?;
                Some(Alias { input, output })
            })
            .collect();
        let outputs: Vec<_> = (self.outputs.iter())
            .map(|(port, value)| (port.name, value.clone()))
            .collect();
        Ok(Sample {
            name: self.name,
            ranks,
            is_fp8: self.is_fp8,
            module: self.builder.finish(&outputs, &aliases)?,
            inputs: self.inputs,
            outputs: self.outputs.into_iter().map(|(port, _)| port).collect(),
        })
    }
}

/// `total = x + y`
fn add() -> Result<Sample, BuildError> {
    let mut draft = Draft::new("add");
    let x = draft.take("x", Element::F32, &[ROWS, COLUMNS])?;
    let y = draft.take("y", Element::F32, &[ROWS, COLUMNS])?;
    let total = draft.builder.binary(Binary::Add, &x, &y)?;
    draft.give("total", total);
    draft.done(1)
}

/// `product = x w`, of BF16, summed in F32.
fn product() -> Result<Sample, BuildError> {
    let mut draft = Draft::new("product");
    let x = draft.take("x", Element::Bf16, &[ROWS, SUMMED])?;
    let w = draft.take("w", Element::Bf16, &[SUMMED, COLUMNS])?;
    let product = draft.builder.dot(&x, &w, MATRICES)?;
    draft.give("product", product);
    draft.done(1)
}

const MATRICES: Contraction<'static> = Contraction {
    batch: (&[], &[]),
    over: (1, 0),
};

/// A row written into `state`, in its own memory, and what some rows then are.
fn in_place() -> Result<Sample, BuildError> {
    let mut draft = Draft::new("in-place");
    let at = draft.take("at", Element::S32, &[1])?;
    let table = draft.take("table", Element::S32, &[LOOKED_AT])?;
    let row = draft.take("row", Element::F32, &[1, COLUMNS])?;
    let state = draft.keep("state", Element::F32, &[ROWS, COLUMNS])?;
    let written = draft.builder.scatter_rows(&state, &at, &row)?;
    let found = draft.builder.gather_rows(&written, &table)?;
    draft.give("found", found);
    draft.give("state", written);
    draft.done(1)
}

/// Rows scattered into `cache` at `slots`, then whole pages of it gathered.
fn pages() -> Result<Sample, BuildError> {
    let mut draft = Draft::new("pages");
    let slots = draft.take("slots", Element::S32, &[WRITTEN])?;
    let table = draft.take("table", Element::S32, &[GATHERED])?;
    let rows = draft.take("rows", Element::F32, &[WRITTEN, WIDTH])?;
    let cache = draft.keep("cache", Element::F32, &[PAGES * PAGE_TOKENS, WIDTH])?;
    let builder = &mut draft.builder;
    let written = builder.scatter_rows(&cache, &slots, &rows)?;
    let by_page = builder.reshape(&written, &[PAGES, PAGE_TOKENS * WIDTH])?;
    let gathered = builder.gather_rows(&by_page, &table)?;
    draft.give("gathered", gathered);
    draft.give("cache", written);
    draft.done(1)
}

/// The greatest of each row, and their columns.
fn largest(wanted: u32) -> Result<Sample, BuildError> {
    let mut draft = Draft::new(largest_name(wanted));
    let logits = draft.take("logits", Element::F32, &[ENTRIES, LOGITS])?;
    let (values, columns) = draft.builder.top_k(&logits, wanted)?;
    let columns = draft.builder.convert(&columns, Element::S32)?;
    draft.give("values", values);
    draft.give("columns", columns);
    draft.done(1)
}

/// FP8 widened to BF16, shown, and multiplied.
fn fp8() -> Result<Sample, BuildError> {
    let mut draft = Draft::new("fp8");
    let x = draft.take("x", Element::Bf16, &[ROWS, SUMMED])?;
    let w = draft.take("w", Element::F8e4m3fn, &[SUMMED, COLUMNS])?;
    let wide = draft.builder.convert(&w, Element::Bf16)?;
    let product = draft.builder.dot(&x, &wide, MATRICES)?;
    let shown = draft.builder.convert(&wide, Element::F32)?;
    draft.give("widened", shown);
    draft.give("product", product);
    draft.done(1)
}

/// The sum over so many ranks.
fn sum(ranks: u32) -> Result<Sample, BuildError> {
    let mut draft = Draft::new(sum_name(ranks));
    let x = draft.take("x", Element::F32, &[ROWS, COLUMNS])?;
    let total = draft.builder.all_reduce(&x, ranks)?;
    draft.give("total", total);
    draft.done(ranks)
}

#[cfg(test)]
mod tests {
    use graph::{Compile, Target};

    use super::*;

    #[test]
    fn the_compiler_is_not_known_to_refuse_any() {
        for target in Target::ALL {
            for sample in all(32).unwrap() {
                let checked = graph::check(&sample.module, Compile::from(target));
                assert!(checked.is_ok(), "{} for {target}: {checked:?}", sample.name);
            }
        }
    }

    #[test]
    fn ranks_are_tried_in_pairs_and_all_together() {
        assert_eq!(groups(1), Vec::<u32>::new());
        assert_eq!(groups(2), [2]);
        assert_eq!(groups(32), [2, 32]);
    }

    #[test]
    fn what_is_kept_is_given_back_under_its_name() {
        let kept = |sample: &Sample| {
            let aliases = sample.module.input_output_alias.as_ref().unwrap();
            aliases.entries.len()
        };
        let samples = all(2).unwrap();
        let kept: Vec<_> = (samples.iter())
            .map(|sample| (sample.name.as_str(), kept(sample)))
            .filter(|(_, kept)| *kept > 0)
            .collect();
        assert_eq!(kept, [("in-place", 1), ("pages", 1)]);
    }
}
