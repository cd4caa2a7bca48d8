//! Ahead of time: from a decoder to a bundle of NEFFs on disk.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use graph::{Bucket, Compile, Cost, Footprint, LowerError, Malformed, Memory, Module, Refusal};
use model::Decoder;

use crate::artifact;
use crate::artifact::{
    ArtifactError, Bundle, Compiled, Compiler, FORMAT, Identity, Manifest, Store, bundle_key,
    digest, digest_of_file, facts, module_key,
};
use crate::compile::{self, CompileError, News, Product, Settings, Task, arguments};
use crate::plan::{Padding, Plan, PlanError, Wish};

/// How often the KV cache is made smaller for the sake of what its modules need: what they need
/// hardly depends on it.
const ROUNDS: u32 = 4;

/// Compilers of known SDKs (neuron.md, source keys: AWS's manifest of SDK 2.32.0).
const SDKS: [(&str, &str); 1] = [("2.27.5334.0", "2.32.0")];

/// What is to be prepared.
#[derive(Debug)]
pub struct Request<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// Which model that is.
    pub identity: Identity,
    /// Which modules.
    pub wish: Wish,
    /// Where the bundle is kept.
    pub store: Store,
    /// How they are compiled.
    pub settings: Settings,
    /// The command that asks for this, to be shown where the bundle is found wanting.
    pub command: String,
    /// Set by whoever wants to stop: compilers are then killed, and what is done is kept.
    pub stop: &'a AtomicBool,
}

/// What happens, as it happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// What will be compiled; nothing has been yet.
    Planned(&'a Summary),
    /// Another process prepares in the same store.
    Waiting,
    /// The compiler's version.
    Compiler(&'a str),
    /// A module was compiled before.
    Kept(&'a str),
    /// A module's compiler runs.
    Started(&'a str),
    /// It will run once more.
    Again {
        /// Of which module.
        module: &'a str,
        /// Why.
        why: &'static str,
    },
    /// A module is compiled and kept.
    Compiled {
        /// Which.
        module: &'a str,
        /// How.
        compiled: &'a Compiled,
    },
    /// A module is not compiled; the others go on.
    Failed {
        /// Which.
        module: &'a str,
        /// Why not.
        error: &'a CompileError,
    },
}

/// Why a model was not prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A module cannot be made.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The compiler would refuse a module.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A module cannot be counted.
    #[error("the lowering has a mistake, please report it: {0}")]
    Malformed(#[from] Malformed),
    /// The store cannot be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The compiler cannot be run.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Some modules were not compiled.
    #[error(
        "not compiled: {}; the other {others} modules are kept, and the same command goes on from \
         here", modules.join(", ")
    )]
    Unfinished {
        /// Which.
        modules: Vec<String>,
        /// How many were.
        others: usize,
    },
}

/// A plan with its modules.
#[derive(Debug)]
pub struct Summary {
    /// What will be compiled.
    pub plan: Plan,
    /// What each module is.
    pub modules: Vec<Figures>,
    /// What a rank needs of its core's memory.
    pub memory: Memory,
}

/// Figures of a module.
#[derive(Clone, Debug)]
pub struct Figures {
    /// What it runs.
    pub bucket: Bucket,
    /// How much of its work may be padding.
    pub padding: Padding,
    /// Bytes of device memory that a step in it moves.
    pub moved: u64,
    /// Bytes of intermediate values.
    pub workspace: u64,
    /// Bytes of its HLO.
    pub hlo: u64,
}

/// A module and what follows from it.
struct Lowered {
    bucket: Bucket,
    module: Module,
    footprint: Footprint,
}

/// Lowers and compiles what `request` asks for, as far as it is not there already, and gives the
/// bundle. `tell` hears of it as it goes.
///
/// # Errors
/// What cannot be, what does not fit, what was not compiled. What was compiled is kept, so that the
/// same request again goes on from there.
pub fn prepare(
    request: &Request<'_>,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Bundle, PrepareError> {
    let (plan, lowered) = lower(request.decoder, &request.wish)?;
    let summary = summary(request.decoder, &plan, &lowered)?;
    tell(Event::Planned(&summary));
    let _lock = request.store.lock(|| tell(Event::Waiting))?;
    let work = request.store.work();
    let version = compile::version(&request.settings.program, &work, request.stop)?;
    tell(Event::Compiler(&version));
    let sdk = SDKS
        .iter()
        .find(|(compiler, _)| version.starts_with(compiler));
    let compiler = Compiler {
        sdk: sdk.map(|(_, sdk)| (*sdk).to_owned()),
        version,
        target: plan.target,
        lnc: plan.lnc,
    };
    let recipes = recipes(request, &plan, &lowered);
    let compiled = Kitchen {
        request,
        compiler: &compiler,
        done: HashMap::new(),
    }
    .cook(&recipes, tell)?;
    let modules: Vec<_> = lowered
        .into_iter()
        .zip(compiled)
        .map(|(lowered, compiled)| artifact::Module {
            bucket: lowered.bucket,
            compiled,
            layout: lowered.module.layout,
        })
        .collect();
    let manifest = Manifest {
        format: FORMAT,
        key: bundle_key(&compiler, &modules),
        model: request.identity.clone(),
        decoder: facts(request.decoder),
        compiler,
        form: plan.form,
        modules,
        command: request.command.clone(),
    };
    Ok(request.store.publish(&manifest)?)
}

/// What [`prepare`] would make: the plan, its modules, and what a rank needs to run them.
///
/// # Errors
/// What cannot be, and what does not fit.
pub fn survey(decoder: &Decoder, wish: &Wish) -> Result<Summary, PrepareError> {
    let (plan, lowered) = lower(decoder, wish)?;
    summary(decoder, &plan, &lowered)
}

/// The plan and its modules. The KV cache is made smaller if what the modules need leaves too
/// little room for it.
fn lower(decoder: &Decoder, wish: &Wish) -> Result<(Plan, Vec<Lowered>), PrepareError> {
    let mut plan = Plan::new(decoder, wish)?;
    let mut lowered = modules(decoder, &plan)?;
    for _ in 0..ROUNDS {
        let footprints = footprints(&lowered);
        if !plan.settle(&|form| Memory::of_footprints(decoder, form, &footprints))? {
            break;
        }
        lowered = modules(decoder, &plan)?;
    }
    Ok((plan, lowered))
}

fn modules(decoder: &Decoder, plan: &Plan) -> Result<Vec<Lowered>, PrepareError> {
    let compile = Compile {
        logical: plan.lnc,
        ..plan.target.into()
    };
    let lower = |&bucket: &Bucket| {
        let module = graph::lower(decoder, &plan.form, bucket)?;
        graph::check(&module.proto, compile)?;
        Ok(Lowered {
            bucket,
            footprint: Footprint::of(&module.proto)?,
            module,
        })
    };
    plan.buckets.iter().map(lower).collect()
}

fn footprints(lowered: &[Lowered]) -> Vec<(Bucket, Footprint)> {
    let footprint = |lowered: &Lowered| (lowered.bucket, lowered.footprint);
    lowered.iter().map(footprint).collect()
}

fn summary(decoder: &Decoder, plan: &Plan, lowered: &[Lowered]) -> Result<Summary, PrepareError> {
    let memory = Memory::of_footprints(decoder, &plan.form, &footprints(lowered));
    let figures = |lowered: &Lowered| {
        Ok(Figures {
            bucket: lowered.bucket,
            padding: plan.padding(lowered.bucket),
            moved: Cost::of(&lowered.module.proto, plan.target)?.bytes(),
            workspace: lowered.footprint.workspace,
            hlo: lowered.module.proto.to_bytes().len() as u64,
        })
    };
    Ok(Summary {
        plan: plan.clone(),
        modules: lowered
            .iter()
            .map(figures)
            .collect::<Result<_, Malformed>>()?,
        memory: memory.map_err(PlanError::Form)?,
    })
}

/// What a module is compiled from.
struct Recipe {
    task: Task,
    digest: String,
}

fn recipes(request: &Request<'_>, plan: &Plan, lowered: &[Lowered]) -> Vec<Recipe> {
    let extra = &request.settings.extra;
    let recipe = |lowered: &Lowered| {
        let name = lowered.bucket.name();
        let hlo = lowered.module.proto.to_bytes();
        Recipe {
            digest: digest(&hlo),
            task: Task {
                arguments: arguments(&name, plan.target, plan.lnc, &plan.form, extra),
                name,
                hlo,
            },
        }
    };
    lowered.iter().map(recipe).collect()
}

/// Where modules are compiled, each of those that are the same once.
struct Kitchen<'a> {
    request: &'a Request<'a>,
    compiler: &'a Compiler,
    /// By the module's key.
    done: HashMap<String, Compiled>,
}

impl Kitchen<'_> {
    /// How each was compiled, in their order.
    fn cook(
        mut self,
        recipes: &[Recipe],
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Compiled>, PrepareError> {
        let missing = self.missing(recipes, tell);
        self.compile(&missing, tell)?;
        let failed = |recipe: &&Recipe| !self.done.contains_key(&self.key(recipe));
        let modules: Vec<_> = recipes.iter().filter(failed).collect();
        if !modules.is_empty() {
            return Err(PrepareError::Unfinished {
                others: recipes.len() - modules.len(),
                modules: modules
                    .iter()
                    .map(|recipe| recipe.task.name.clone())
                    .collect(),
            });
        }
        let of = |recipe| self.done.get(&self.key(recipe)).cloned();
        Ok(recipes.iter().filter_map(of).collect())
    }

    fn key(&self, recipe: &Recipe) -> String {
        module_key(self.compiler, &recipe.digest, &recipe.task.arguments)
    }

    /// What is not in the store, each once.
    fn missing<'r>(
        &mut self,
        recipes: &'r [Recipe],
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Vec<&'r Recipe> {
        let mut missing: Vec<&Recipe> = Vec::new();
        for recipe in recipes {
            let arguments = &recipe.task.arguments;
            let store = &self.request.store;
            let key = self.key(recipe);
            if missing.iter().any(|other| self.key(other) == key) {
                continue;
            }
            match store.compiled(self.compiler, &recipe.digest, arguments) {
                Some(compiled) => {
                    tell(Event::Kept(&recipe.task.name));
                    self.done.insert(key, compiled);
                }
                None => missing.push(recipe),
            }
        }
        missing
    }

    /// Compiles them and keeps what comes out.
    fn compile(
        &mut self,
        missing: &[&Recipe],
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), PrepareError> {
        let Request {
            settings,
            store,
            stop,
            ..
        } = self.request;
        let tasks: Vec<_> = missing.iter().map(|recipe| &recipe.task).collect();
        let mut broken = None;
        let mut hear = |task: usize, news: News| {
            let recipe = missing[task];
            let module = recipe.task.name.as_str();
            match news {
                News::Started => tell(Event::Started(module)),
                News::Again { why } => tell(Event::Again { module, why }),
                News::Failed(error) => {
                    let error = &error;
                    tell(Event::Failed { module, error });
                }
                News::Done(product) => match self.keep(recipe, &product) {
                    Ok(compiled) => tell(Event::Compiled {
                        module,
                        compiled: &compiled,
                    }),
                    Err(error) => {
                        broken = Some(error);
                        return ControlFlow::Break(());
                    }
                },
            }
            ControlFlow::Continue(())
        };
        compile::compile(settings, &store.work(), &tasks, stop, &mut hear)?;
        match broken {
            Some(error) => Err(error.into()),
            None if stop.load(Ordering::Relaxed) => Err(CompileError::Stopped.into()),
            None => Ok(()),
        }
    }

    fn keep(&mut self, recipe: &Recipe, product: &Product) -> Result<Compiled, ArtifactError> {
        let read = |why| ArtifactError::Read {
            path: product.neff.clone(),
            why,
            command: self.request.command.clone(),
        };
        let compiled = Compiled {
            hlo: recipe.digest.clone(),
            arguments: recipe.task.arguments.clone(),
            neff: digest_of_file(&product.neff).map_err(read)?,
            neff_bytes: product.neff.metadata().map_err(read)?.len(),
            seconds: product.elapsed.as_secs_f64(),
            peak_memory: product.peak,
        };
        let store = &self.request.store;
        store.keep(self.compiler, &compiled, &recipe.task.hlo, &product.neff)?;
        self.done.insert(self.key(recipe), compiled.clone());
        Ok(compiled)
    }
}

impl fmt::Display for Summary {
    /// A table: a line for each module, then the memory of a rank.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1_048_576.0;
        writeln!(
            f,
            "{:<24}{:>13}{:>12}{:>14}{:>12}{:>11}",
            "module", "padding up to", "in the mean", "moved (MiB)", "work (MiB)", "HLO (KiB)"
        )?;
        for figures in &self.modules {
            #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
            let mib = |bytes: u64| bytes as f64 / MIB;
            let Padding { worst, mean } = figures.padding;
            writeln!(
                f,
                "{:<24}{:>11.0} %{:>10.0} %{:>14.1}{:>12.1}{:>11.1}",
                figures.bucket.name(),
                100.0 * worst,
                100.0 * mean,
                mib(figures.moved),
                mib(figures.workspace),
                1024.0 * mib(figures.hlo)
            )?;
        }
        write!(f, "\n{}", self.memory)
    }
}

#[cfg(test)]
mod tests;
