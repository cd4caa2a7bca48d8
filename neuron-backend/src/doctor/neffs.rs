//! The samples, compiled: kept in a directory under names that say what they are of, so that they can
//! be compiled where the compiler is and used where the device is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use graph::{Activations, Form, KvFormat, Target, WeightFormat};

use super::samples::{self, Sample};
use crate::artifact::{digest, move_whole};
use crate::compile::{self, News, Settings, Task, arguments, compile};
use crate::neff::Header;

/// Where samples are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) lnc: u32,
    pub(super) cores: u32,
}

/// What became of the samples.
#[derive(Clone, Default, Debug)]
pub(super) struct Neffs {
    /// Those that are there, by name.
    pub(super) paths: BTreeMap<String, PathBuf>,
    /// One for another target.
    pub(super) foreign: Option<PathBuf>,
    /// Why others are not, by name.
    pub(super) failed: BTreeMap<String, String>,
    /// Which of them were compiled now.
    pub(super) compiled: Vec<String>,
}

/// One file that is wanted.
struct Wanted {
    /// The sample's name; none for the one of another target.
    name: Option<String>,
    path: PathBuf,
    task: Task,
}

/// Finds the samples in `directory`, and compiles those that are not there: how many they are `begin`
/// hears.
///
/// # Errors
/// Nothing can be compiled, or written there.
pub(super) fn make(
    directory: &Path,
    place: Place,
    settings: &Settings,
    begin: &mut dyn FnMut(usize),
) -> Result<Neffs, String> {
    let mut neffs = Neffs::default();
    let mut missing = Vec::new();
    for wanted in wanted(directory, place)? {
        match Header::read(&wanted.path) {
            Ok(_) => neffs.keep(wanted.name, wanted.path),
            Err(_) => missing.push(wanted),
        }
    }
    if missing.is_empty() {
        return Ok(neffs);
    }
    begin(missing.len());
    let work = directory.join(format!("work-{}", std::process::id()));
    let made = fs::create_dir_all(&work).map_err(|error| unwritable(&work, &error));
    let done = made.and_then(|()| neffs.compile(&work, &missing, settings));
    // What cannot be removed bothers nobody.
    let _ = fs::remove_dir_all(&work);
    done?;
    Ok(neffs)
}

impl Neffs {
    fn keep(&mut self, name: Option<String>, path: PathBuf) {
        match name {
            Some(name) => {
                self.paths.insert(name, path);
            }
            None => self.foreign = Some(path),
        }
    }

    fn compile(
        &mut self,
        work: &Path,
        missing: &[Wanted],
        settings: &Settings,
    ) -> Result<(), String> {
        let stop = AtomicBool::new(false);
        compile::version(&settings.program, work, &stop).map_err(|error| error.to_string())?;
        let tasks: Vec<_> = missing.iter().map(|wanted| &wanted.task).collect();
        let mut unwritten = None;
        let compiled = compile(settings, work, &tasks, &stop, &mut |place, news| {
            let Wanted { name, path, task } = &missing[place];
            match news {
                News::Started | News::Again { .. } => {}
                News::Failed(error) => {
                    self.failed.insert(task.name.clone(), error.to_string());
                }
                News::Done(product) => match move_whole(&product.neff, path) {
                    Ok(()) => {
                        self.compiled.push(task.name.clone());
                        self.keep(name.clone(), path.clone());
                    }
                    Err(error) => {
                        unwritten = Some(unwritable(path, &error));
                        return ControlFlow::Break(());
                    }
                },
            }
            ControlFlow::Continue(())
        });
        compiled.map_err(|error| error.to_string())?;
        unwritten.map_or(Ok(()), Err)
    }
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    format!("cannot write {path}: {error}; name a directory that can be written by --artifacts")
}

/// All samples, and one of another target.
fn wanted(directory: &Path, place: Place) -> Result<Vec<Wanted>, String> {
    let samples = samples::all(place.cores).map_err(|error| error.to_string())?;
    let other = match place.target {
        Target::Trn2 => Target::Trn1,
        _ => Target::Trn2,
    };
    let elsewhere = Place {
        target: other,
        lnc: other.default_logical(),
        ..place
    };
    let mut all: Vec<_> = (samples.iter())
        .map(|sample| one(directory, place, sample, Some(sample.name.clone())))
        .collect();
    let add = samples.iter().find(|sample| sample.name == "add");
    all.extend(add.map(|sample| one(directory, elsewhere, sample, None)));
    Ok(all)
}

fn one(directory: &Path, place: Place, sample: &Sample, name: Option<String>) -> Wanted {
    let Place { target, lnc, .. } = place;
    let hlo = sample.module.to_bytes();
    let arguments = arguments(&sample.name, target, lnc, &form(sample, target), &[]);
    let mut identity = hlo.clone();
    identity.extend(
        arguments
            .iter()
            .flat_map(|argument| argument.bytes().chain([0])),
    );
    let digest = digest(&identity);
    let digest = digest.get(..12).unwrap_or(&digest);
    let file = format!("doctor-{target}-lnc{lnc}-{}-{digest}.neff", sample.name);
    Wanted {
        task: Task {
            name: match name {
                Some(_) => sample.name.clone(),
                None => format!("{} for {target}", sample.name),
            },
            hlo,
            arguments,
        },
        path: directory.join(file),
        name,
    }
}

/// What the compiler's arguments follow from: all but formats is anything.
fn form(sample: &Sample, target: Target) -> Form {
    Form {
        ranks: sample.ranks,
        weights: match sample.is_fp8 {
            true => WeightFormat::Fp8,
            false => WeightFormat::Bf16,
        },
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        fp8_max: target.facts().fp8_max,
        page_tokens: 16,
        pages: 1,
        context: 16,
        candidates: 1,
    }
}
