//! What `neuronx-cc` is known to refuse, or to compile into something wrong or slow, found in a
//! module before minutes of compilation are spent on it.
//!
//! Rules are those of `neuron.md` 2.2 to 2.5, by the compiler's own name where it has one. Not
//! every fault is found: a shape error of an operation that [`shapes`] does not know, and an index
//! that only the data makes too large, are found by the compiler and by the device.

mod bounds;
mod operators;
mod shapes;
mod structure;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::memory::Footprint;
use crate::proto::HloModule;
use crate::target::{Facts, Target};
use crate::view::View;

/// How a module is to be compiled, as far as it changes what is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compile {
    /// What for.
    pub target: Target,
    /// Physical cores of a logical one (`--logical-nc-config`).
    pub logical: u32,
    /// Whether F8E4M3FN is taken for the device's E4M3
    /// (`--experimental-unsafe-fp8e4m3fn-as-fp8e4m3`).
    pub fp8_as_device: bool,
}

impl From<Target> for Compile {
    /// As [`Facts`] say it should be.
    fn from(target: Target) -> Self {
        Self {
            target,
            logical: target.default_logical(),
            fp8_as_device: target.facts().fp8_flag,
        }
    }
}

/// A rule of the compiler's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// Ids are unique and below 2^31, and everything referred to is there.
    Identity,
    /// No size is dynamic.
    DynamicShape,
    /// Sizes follow from those of the operands, and values are as many as sizes say.
    Shape,
    /// Arrays lie row by row; program shapes say nothing of layout.
    Layout,
    /// No floats of 64 bits.
    Double,
    /// No integers of 64 bits.
    Integer64,
    /// No element type that the devices do not know.
    ElementType,
    /// F8E4M3FN only where the device or the flag makes it one of its own.
    Fp8Ocp,
    /// F8E4M3 with infinities not from Trainium3 on.
    Fp8Ieee,
    /// No FP8 with an unsigned zero.
    Fp8Fnuz,
    /// The flag for F8E4M3FN not with ready kernels on Trainium3.
    Fp8Flag,
    /// No sort.
    Sort,
    /// No loops and no branches.
    ControlFlow,
    /// No random numbers.
    Random,
    /// No operation that nobody has seen it compile.
    Operation,
    /// No products of integer matrices from Trainium2 on.
    IntegerDot,
    /// Integers are divided by constant powers of two only.
    IntegerDivision,
    /// `AwsNeuronTopK`: floats, 8 to 16384 columns, a multiple of 8.
    TopK,
    /// No custom call that it does not know.
    CustomCall,
    /// No index that is certain to lie outside.
    Bounds,
    /// Reducers are a sum, product, minimum or maximum; a scatter's is an assignment.
    Reducer,
    /// A reduction starts from a constant.
    ReduceStart,
    /// Collectives name groups of equal size that part all ranks, and no channel.
    Groups,
    /// A parameter is given back through a `copy`.
    ReturnedParameter,
    /// Each input has a name of its own.
    InputNames,
    /// Each output has a name of its own.
    OutputNames,
    /// An aliased pair has one shape, agreeing names, and the kind "must".
    Alias,
    /// A cache is written once.
    Writers,
    /// A cache is not read beside its write.
    UnorderedRead,
    /// Nothing that is taken or given is empty.
    Empty,
    /// Inputs, outputs and scratchpad fit the bank.
    Memory,
    /// At most five million machine instructions.
    GraphSize,
}

impl Rule {
    /// The compiler's name of it, where it has one.
    pub fn code(self) -> Option<&'static str> {
        Some(match self {
            Self::DynamicShape => "NCC_EMOD025",
            Self::Shape => "NCC_EVRF064",
            Self::Double => "NCC_ESPP004",
            Self::Fp8Ocp => "NCC_EVRF051",
            Self::Fp8Ieee => "NCC_EVRF052",
            Self::Fp8Fnuz => "NCC_EVRF005",
            Self::Fp8Flag => "NCC_EOCP001",
            Self::Sort => "NCC_EVRF029",
            Self::IntegerDot => "NCC_EVRF035",
            Self::TopK => "NCC_EVRF013",
            Self::CustomCall => "NCC_EHCA005",
            Self::Bounds => "NCC_EVRF056",
            Self::Memory => "NCC_EVRF009",
            Self::GraphSize => "NCC_EBVF030",
            _ => return None,
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => f.write_str(code),
            None => write!(f, "{self:?}"),
        }
    }
}

/// A rule that a module breaks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{rule} at {at}: {what}")]
pub struct Broken {
    /// Which.
    pub rule: Rule,
    /// The instruction, or what else of the module.
    pub at: String,
    /// What is wrong, and what would do.
    pub what: String,
}

/// All rules that a module breaks, in the order they were found.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "neuronx-cc would refuse module {module:?} for {target}:{}",
    listed(broken)
)]
pub struct Refusal {
    /// The module's name.
    pub module: String,
    /// What for.
    pub target: Target,
    /// At least one.
    pub broken: Vec<Broken>,
}

impl Refusal {
    /// Whether a rule is among those that are broken.
    pub fn breaks(&self, rule: Rule) -> bool {
        self.broken.iter().any(|broken| broken.rule == rule)
    }
}

/// The first of them, a line each.
fn listed(broken: &[Broken]) -> String {
    const SHOWN: usize = 10;
    let mut text = String::new();
    for broken in broken.iter().take(SHOWN) {
        text += &format!("\n  {broken}");
    }
    if broken.len() > SHOWN {
        text += &format!("\n  and {} more", broken.len() - SHOWN);
    }
    text
}

/// Looks a module over.
///
/// # Errors
/// Every rule it breaks. Where ids or references are broken nothing else is looked at.
pub fn check(module: &HloModule, compile: impl Into<Compile>) -> Result<(), Refusal> {
    let compile = compile.into();
    let mut findings = Findings(Vec::new());
    structure::identities(module, &mut findings);
    if findings.0.is_empty() {
        match View::of(module) {
            Ok(view) => rules(module, &view, compile, &mut findings),
            Err(error) => findings.add(Rule::Identity, "the module", error),
        }
    }
    match findings.0 {
        broken if broken.is_empty() => Ok(()),
        broken => Err(Refusal {
            module: module.name.clone(),
            target: compile.target,
            broken,
        }),
    }
}

/// All rules but those of identity.
fn rules(module: &HloModule, view: &View<'_>, compile: Compile, findings: &mut Findings) {
    structure::elements(module, compile, findings);
    structure::layouts(module, findings);
    structure::literals(module, findings);
    structure::programs(module, view, findings);
    structure::outputs(view, findings);
    structure::names(view, findings);
    structure::aliases(module, view, findings);
    structure::writers(view, findings);
    operators::check(module, view, compile, findings);
    shapes::check(view, findings);
    bounds::check(view, findings);
    size(view, compile, findings);
}

/// Memory of inputs, outputs and scratchpad, and the number of machine instructions.
fn size(view: &View<'_>, compile: Compile, findings: &mut Findings) {
    const INSTRUCTIONS: u64 = 5_000_000;
    let facts: &Facts = compile.target.facts();
    let footprint = Footprint::of_view(view);
    let (bank, needed) = (
        facts.memory(compile.logical),
        footprint.ports + footprint.workspace,
    );
    if needed > bank {
        findings.add(
            Rule::Memory,
            "the module",
            format!(
                "inputs, outputs and scratchpad take {needed} bytes and a logical core has {bank}: \
                 choose more ranks, fewer KV pages or smaller buckets"
            ),
        );
    }
    if footprint.instructions > INSTRUCTIONS {
        findings.add(
            Rule::GraphSize,
            "the module",
            format!(
                "it needs about {} machine instructions and may have {INSTRUCTIONS}: choose more \
                 ranks or fewer tokens a step",
                footprint.instructions
            ),
        );
    }
}

/// What was found.
struct Findings(Vec<Broken>);

impl Findings {
    fn add(&mut self, rule: Rule, at: impl fmt::Display, what: impl fmt::Display) {
        self.0.push(Broken {
            rule,
            at: at.to_string(),
            what: what.to_string(),
        });
    }
}
