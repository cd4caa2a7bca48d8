//! What the runtime is told through the environment.
//!
//! libnrt takes its settings from environment variables and reads them in `nrt_init`. Changing the
//! environment of a process that has threads is unsound, so nothing here does: a program asks
//! [`Settings::missing`] first thing in its `main`, and if anything is, replaces itself with the
//! same program under [`Settings::environment`] (`exec`, which keeps the process id). Whoever comes
//! to [`Runtime::start`](super::Runtime::start) without them is refused.

use std::env;
use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// How long an execution may take before the runtime gives it up: what AWS's tutorials for language
/// models set. The documented defaults contradict each other (30, 600 and 2 seconds).
const TIMEOUT: Duration = Duration::from_secs(600);

/// The first port on which rank 0 waits for the others; the first core is added. Above the range
/// from which Linux gives out ports (32768 to 60999).
const PORT: u16 = 61_300;

/// Pairs of tensor sets for which the runtime keeps DMA descriptors, for each model: two for steps
/// in turn, and two to spare.
const KEPT_SETS: u32 = 4;

/// An execution barrier that is turned off lets ranks compute with each other's old data, which
/// nothing notices (neuron.md 1.5).
const HARMFUL: &str = "NEURON_RT_DISABLE_EXECUTION_BARRIER";

/// What the runtime is to do, as far as its environment says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The logical cores of the instance that this process takes, for itself alone.
    pub cores: Range<u32>,
    /// Physical cores of a logical one: must be what the NEFFs were compiled for.
    pub lnc: u32,
    /// The port of 127.0.0.1 on which rank 0 waits for the other ranks.
    pub port: u16,
    /// How long an execution may take before the runtime gives it up.
    pub timeout: Duration,
    /// Pairs of tensor sets for which the runtime keeps DMA descriptors, for each model.
    pub kept_sets: u32,
    /// Whether ranks meet at a barrier of the hardware before each execution. By a third party's
    /// measurements it halves the fixed cost of collectives and changes no bit (neuron.md 1.5); it
    /// is not documented.
    pub hardware_barrier: bool,
    /// Whether an execution fails if a result is not a number.
    pub refuse_nan: bool,
    /// The folder of the runtime's libraries, so that it finds those that it opens itself.
    pub libraries: Option<PathBuf>,
}

impl Settings {
    /// What is right unless something speaks against it, on these logical cores of the instance.
    pub fn new(cores: Range<u32>, lnc: u32) -> Self {
        let first = u16::try_from(cores.start).unwrap_or(0);
        Self {
            port: PORT.saturating_add(first),
            cores,
            lnc,
            timeout: TIMEOUT,
            kept_sets: KEPT_SETS,
            hardware_barrier: false,
            refuse_nan: false,
            libraries: Some("/opt/aws/neuron/lib".into()),
        }
    }

    /// The variables that say so, given those that are set now.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        self.wanted(env::var_os)
    }

    /// Of the variables of [`environment`](Self::environment) those that are not set so.
    pub fn missing(&self) -> Vec<(&'static str, OsString)> {
        let mut missing = self.environment();
        missing.retain(|(name, value)| env::var_os(name).as_ref() != Some(value));
        missing
    }

    /// A variable that is set and must not be, with its value.
    pub(super) fn harmful() -> Option<(&'static str, OsString)> {
        let value = env::var_os(HARMFUL)?;
        (!value.is_empty() && value != "0").then_some((HARMFUL, value))
    }

    fn wanted(
        &self,
        now: impl Fn(&'static str) -> Option<OsString>,
    ) -> Vec<(&'static str, OsString)> {
        let last = self.cores.end.saturating_sub(1).max(self.cores.start);
        let mut wanted = vec![
            (
                "NEURON_RT_VISIBLE_CORES",
                format!("{}-{last}", self.cores.start),
            ),
            ("NEURON_LOGICAL_NC_CONFIG", self.lnc.to_string()),
            // An address and not a name: link-local IPv6 addresses break the runtime's bootstrap.
            ("NEURON_RT_ROOT_COMM_ID", format!("127.0.0.1:{}", self.port)),
            ("NEURON_RT_EXEC_TIMEOUT", self.timeout.as_secs().to_string()),
            ("NEURON_RT_IO_RING_CACHE_SIZE", self.kept_sets.to_string()),
            ("NEURON_PROCESS_TAG", "appliance".to_owned()),
        ];
        if self.hardware_barrier {
            wanted.push(("NEURON_RT_ENABLE_HW_EXECUTION_BARRIER", "1".to_owned()));
        }
        if self.refuse_nan {
            wanted.push((
                "NEURON_RT_NUMERICAL_ERRORS_VERBOSITY",
                "critical".to_owned(),
            ));
        }
        let mut wanted: Vec<_> = wanted
            .into_iter()
            .map(|(name, value)| (name, OsString::from(value)))
            .collect();
        if let Some(path) = self.library_path(now("LD_LIBRARY_PATH")) {
            wanted.push(("LD_LIBRARY_PATH", path));
        }
        wanted
    }

    /// The loader's path with the folder of the runtime's libraries in it.
    fn library_path(&self, now: Option<OsString>) -> Option<OsString> {
        let folder = self.libraries.clone()?;
        let now = now.unwrap_or_default();
        let mut folders: Vec<_> = env::split_paths(&now)
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        if folders.contains(&folder) {
            return Some(now);
        }
        folders.insert(0, folder);
        env::join_paths(folders).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(settings: &Settings, name: &str, library_path: Option<&str>) -> Option<String> {
        let wanted = settings.wanted(|name| {
            assert_eq!(
                name, "LD_LIBRARY_PATH",
                "nothing else depends on what is set"
            );
            library_path.map(OsString::from)
        });
        let (_, value) = wanted.into_iter().find(|(wanted, _)| *wanted == name)?;
        Some(value.into_string().expect("all of these are text"))
    }

    #[test]
    fn cores_are_counted_from_the_first_to_the_last() {
        let check = |cores, text: &str| {
            let settings = Settings::new(cores, 1);
            let visible = value(&settings, "NEURON_RT_VISIBLE_CORES", None);
            assert_eq!(visible.as_deref(), Some(text));
        };
        check(0..1, "0-0");
        check(0..32, "0-31");
        check(4..8, "4-7");
    }

    #[test]
    fn two_processes_on_one_instance_have_ports_of_their_own() {
        let one = value(&Settings::new(0..4, 2), "NEURON_RT_ROOT_COMM_ID", None);
        let other = value(&Settings::new(4..8, 2), "NEURON_RT_ROOT_COMM_ID", None);
        assert_ne!(one, other);
        assert!(one.is_some_and(|id| id.starts_with("127.0.0.1:")));
    }

    #[test]
    fn the_loader_is_led_to_the_runtimes_libraries_once() {
        let settings = Settings::new(0..2, 1);
        let path = |now| value(&settings, "LD_LIBRARY_PATH", now);
        assert_eq!(path(None).as_deref(), Some("/opt/aws/neuron/lib"));
        assert_eq!(
            path(Some("/a:/b")).as_deref(),
            Some("/opt/aws/neuron/lib:/a:/b")
        );
        let there = "/a:/opt/aws/neuron/lib";
        assert_eq!(path(Some(there)).as_deref(), Some(there));
    }

    #[test]
    fn what_is_not_asked_for_is_not_set() {
        let plain = Settings::new(0..2, 1);
        let name = "NEURON_RT_ENABLE_HW_EXECUTION_BARRIER";
        assert_eq!(value(&plain, name, None), None);
        let faster = Settings {
            hardware_barrier: true,
            ..plain
        };
        assert_eq!(value(&faster, name, None).as_deref(), Some("1"));
    }

    #[test]
    fn variables_that_are_not_set_are_missing() {
        let settings = Settings::new(0..2, 1);
        let missing: Vec<_> = settings
            .missing()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(missing.contains(&"NEURON_RT_VISIBLE_CORES"), "{missing:?}");
        assert!(missing.contains(&"NEURON_RT_ROOT_COMM_ID"), "{missing:?}");
    }
}
