//! A Neuron device that is none: the stand-ins for libnrt and neuronx-cc, and models prepared for them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::models::{Model, directory_in, scratch, target};
use crate::server::{appliance_with, log_path};

/// The stand-ins, as `cargo xtask test` builds and finds them.
#[derive(Clone, Debug)]
pub struct Fake {
    libnrt: PathBuf,
    compiler: PathBuf,
    xla: PathBuf,
    /// What else its environment says.
    more: Vec<(&'static str, OsString)>,
}

/// How a model is prepared unless a test says something else: all in F32, so that answers are those of
/// the CPU backend, and few modules, because XLA takes a second or so for each.
const FORM: [&str; 12] = [
    "--candidates",
    "256",
    "--decode-rows",
    "4,16",
    "--prefill-tokens",
    "64,256",
    "--page-tokens",
    "16",
    "--activations",
    "f32",
    "--kv-dtype",
    "f32",
];

impl Fake {
    /// The stand-ins; elsewhere than under `cargo xtask test` perhaps `None`, and a word about it.
    pub fn found() -> Option<Self> {
        let Some(xla) = std::env::var_os("APPLIANCE_XLA_CPU") else {
            eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
            return None;
        };
        let built = |name: &str| {
            let path = target().join(name);
            assert!(
                path.is_file(),
                "no {}: `cargo build -p fake-nrt`, or `make test`",
                path.display()
            );
            path
        };
        Some(Self {
            libnrt: built("libnrt.so"),
            compiler: built("fake-neuronx-cc"),
            xla: xla.into(),
            more: Vec::new(),
        })
    }

    /// The same with a variable in its environment: `FAKE_NRT_..`, `FAKE_NEURONX_CC`.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.more.push((name, value.into()));
        self
    }

    /// The stand-in for neuronx-cc.
    pub fn compiler(&self) -> &Path {
        &self.compiler
    }

    /// The variables under which a process finds the stand-ins, on a machine of its own.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment = vec![
            ("APPLIANCE_LIBNRT", self.libnrt.clone().into()),
            ("APPLIANCE_XLA_CPU", self.xla.clone().into()),
            ("FAKE_NRT_DIR", log_path("machine").into()),
        ];
        environment.extend(self.more.iter().cloned());
        environment
    }

    /// Where the modules of `model` are, for `ranks` ranks and with these further flags of `appliance
    /// prepare`: compiled once for all tests.
    pub fn prepared(&self, model: &Model, ranks: u32, flags: &[&str]) -> PathBuf {
        type Done = HashMap<PathBuf, Arc<Mutex<bool>>>;
        static DONE: Mutex<Option<Done>> = Mutex::new(None);
        let name = model.path.file_name().expect("a model has a name");
        let kind = flags.concat().replace(['-', ',', '/'], "");
        let store = directory_in(
            "bundles",
            &format!("{}-{ranks}-{kind}", name.to_string_lossy()),
        );
        let done = {
            let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
            let done = done.get_or_insert_default();
            Arc::clone(done.entry(store.clone()).or_default())
        };
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        if !*done {
            self.prepare(model, ranks, flags, &store);
            *done = true;
        }
        store
    }

    fn prepare(&self, model: &Model, ranks: u32, flags: &[&str], store: &Path) {
        let environment = self.environment();
        let variables: Vec<_> = environment
            .iter()
            .map(|(name, value)| (*name, value.to_str().expect("paths of tests are text")))
            .collect();
        let ranks = ranks.to_string();
        let mut args: Vec<OsString> =
            ["prepare", "--backend", "neuron", "--target", "trn2", "--tp"]
                .map(OsString::from)
                .into();
        args.extend([ranks.into(), "--model".into(), model.path.clone().into()]);
        args.extend(["--compiler".into(), self.compiler.clone().into()]);
        args.extend(["--artifacts".into(), store.into()]);
        let pages = context(model) / 16;
        args.extend(["--context-pages".into(), format!("16,{pages}").into()]);
        // The null page, and room for a sequence of full length, or for more of shorter ones.
        args.extend([
            "--kv-pages".into(),
            (pages.max(2048) + 1).to_string().into(),
        ]);
        // What comes later counts.
        args.extend(FORM.iter().chain(flags).map(OsString::from));
        let ended = appliance_with(&variables, args);
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    }
}

/// Positions that a model was made for.
fn context(model: &Model) -> u64 {
    let config = std::fs::read(model.path.join("config.json")).expect("a configuration");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    config["max_position_embeddings"]
        .as_u64()
        .expect("a number")
}

/// Runs `test` in a process of its own with `environment`, which no process with threads could set for
/// itself. `name` is the test's own, as the test binary lists it.
pub fn apart(name: &str, environment: &[(&str, OsString)], test: impl FnOnce()) {
    const APART: &str = "APPLIANCE_TEST_APART";
    if std::env::var_os(APART).is_some() {
        return test();
    }
    let this = std::env::current_exe().expect("the path of this test binary");
    let output = std::process::Command::new(this)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env(APART, "1")
        .output()
        .expect("a test binary runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    assert!(out.contains("1 passed"), "no test is called {name}: {out}");
}

/// A directory under `target` that is not there yet.
pub fn fresh(name: &str) -> PathBuf {
    let path = scratch().join(format!("{}-{name}", std::process::id()));
    std::fs::remove_dir_all(&path).ok();
    path
}
