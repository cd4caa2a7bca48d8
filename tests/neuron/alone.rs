//! A test in a process of its own, with an environment of its own: the test starts its own binary
//! again, for itself alone.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use neuron_backend::nrt::Settings;

/// Says which test the process is for.
const TEST: &str = "APPLIANCE_TEST_ALONE";

/// The variable that names XLA's plugin for the CPU.
const PLUGIN: &str = "APPLIANCE_XLA_CPU";

/// Where and how a test runs.
#[derive(Clone, Debug)]
pub(crate) struct Alone {
    test: &'static str,
    settings: Option<Settings>,
    variables: Vec<(&'static str, OsString)>,
    faults: &'static str,
}

impl Alone {
    /// The test with this name, modules included, on a machine of the stand-in. What is left when
    /// the runtime closes ends the process.
    pub(crate) fn new(test: &'static str, instance: &str, settings: Settings) -> Self {
        let this = Self {
            test,
            settings: Some(settings),
            variables: Vec::new(),
            faults: "",
        };
        this.with("FAKE_NRT_INSTANCE", instance)
            .with("FAKE_NRT_LEAKS", "abort")
            .with("FAKE_NRT_EXECUTE", "skip")
    }

    /// With a variable more.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// With what goes wrong on purpose: the stand-in's `faults.rs` has the grammar.
    pub(crate) fn failing(mut self, faults: &'static str) -> Self {
        self.faults = faults;
        self
    }

    /// Without what the runtime's settings want in the environment.
    pub(crate) fn unprepared(mut self) -> Self {
        self.settings = None;
        self
    }

    /// With executions that compute; `None`, and a word about it, where there is nothing that could.
    pub(crate) fn computing(self) -> Option<Self> {
        if env::var_os(PLUGIN).is_none() {
            eprintln!("skipped: {PLUGIN} names no plugin; `make test` sets it");
            return None;
        }
        Some(self.with("FAKE_NRT_EXECUTE", "run"))
    }

    /// Runs the test, here if this is its process, or else in one that is.
    pub(crate) fn run(&self, test: impl FnOnce()) {
        if env::var_os(TEST).is_some_and(|name| name == self.test) {
            return test();
        }
        let this = env::current_exe().expect("this binary has a path");
        let folder = Folder::new(self.test);
        let faults = folder.0.join("faults");
        fs::write(&faults, self.faults).expect("a file in it");
        let mut command = Command::new(&this);
        command
            .args(["--exact", self.test, "--nocapture"])
            .env(TEST, self.test)
            .env("APPLIANCE_LIBNRT", this.with_file_name("libnrt.so"))
            .env("FAKE_NRT_DIR", &folder.0)
            .env("FAKE_NRT_FAULTS", &faults);
        if let Some(settings) = &self.settings {
            command.envs(settings.environment());
        }
        let variables = self.variables.iter().map(|(name, value)| (name, value));
        let output = command.envs(variables).output().expect("it starts again");
        let told = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && told.contains("1 passed"),
            "{}\n{told}\n{errors}",
            output.status
        );
    }
}

/// A machine's folder, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("{}-{}", std::process::id(), test.replace("::", "-"));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a folder for a test");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed bothers nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}
