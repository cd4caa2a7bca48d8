//! What the environment says: the variables of the real library and those of this one. The README
//! lists them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::names::Names;
use crate::status::{Failure, refuse};
use crate::topology::Topology;

/// What variables of this library start with.
const PREFIX: &str = "FAKE_NRT_";

/// Bytes of a core that the runtime and its microcode take: about 0.13 GiB and 96 MB (neuron.md 4.2).
const OVERHEAD: u64 = (133 + 96) << 20;

/// What the environment says. Read anew at each call before `nrt_init`, and fixed by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `FAKE_NRT_INSTANCE`, `NEURON_LOGICAL_NC_CONFIG` and `FAKE_NRT_HBM_BYTES`.
    pub topology: Topology,
    /// `NEURON_RT_VISIBLE_CORES`.
    pub visible: Option<String>,
    /// `NEURON_RT_NUM_CORES`; the visible cores count more.
    pub cores: Option<u32>,
    /// `NEURON_RT_ROOT_COMM_ID`: without it no collectives.
    pub root: Option<String>,
    /// `NEURON_FAIL_ON_NAN=1` or `NEURON_RT_NUMERICAL_ERRORS_VERBOSITY=critical`: whether a result
    /// that is not a number fails the execution.
    pub nan_fails: bool,
    /// `FAKE_NRT_OVERHEAD_BYTES`: device memory that each core's runtime takes.
    pub overhead: u64,
    /// `FAKE_NRT_DIR`: where locks of cores and tables of memory are.
    pub directory: PathBuf,
    /// `FAKE_NRT_NAMES`: what a model's inputs and outputs are called.
    pub names: Names,
    /// `FAKE_NRT_FAULTS`: the file that says what goes wrong.
    pub faults: Option<PathBuf>,
    /// `FAKE_NRT_JOURNAL`: the file that calls are written to.
    pub journal: Option<PathBuf>,
    /// `FAKE_NRT_TIMEOUT`: seconds after which whoever waits for other ranks gives up.
    pub timeout: Option<Duration>,
    /// `FAKE_NRT_LATENCY_US` or `FAKE_NRT_EXECUTE=skip`: an execution takes this long and computes
    /// nothing.
    pub latency: Option<Duration>,
    /// `FAKE_NRT_ALLOW_RACES=1`: a write into a tensor that an execution uses just lands, as it does
    /// on the device.
    pub races: bool,
    /// `FAKE_NRT_LEAKS=abort`: what is left at `nrt_close` ends the process.
    pub leaks_abort: bool,
    /// `FAKE_NRT_VERSION`.
    pub version: [u64; 4],
    /// `FAKE_NRT_REINIT=1`: `nrt_init` after `nrt_close` is allowed.
    pub reinit: bool,
    /// `APPLIANCE_XLA_CPU`: the plugin that executions go through.
    pub plugin: Option<PathBuf>,
}

impl Settings {
    /// What this process' environment says.
    ///
    /// # Errors
    /// A variable has no meaning, or there is no such variable of ours.
    pub fn from_environment() -> Result<Self, Failure> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::read(variables)
    }

    /// What `variables` say.
    ///
    /// # Errors
    /// A variable has no meaning, or there is no such variable of ours.
    pub fn read(variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Failure> {
        let mut left = Variables(variables.into_iter().collect());
        let instance = left.take("FAKE_NRT_INSTANCE");
        let lnc = match left.number("NEURON_LOGICAL_NC_CONFIG")? {
            None => left.number("NEURON_RT_VIRTUAL_CORE_SIZE")?,
            some => some,
        };
        let topology = Topology::new(
            instance.as_deref().unwrap_or("trn2.3xlarge"),
            lnc,
            left.number("FAKE_NRT_HBM_BYTES")?,
        )?;
        let directory = left.take("FAKE_NRT_DIR").map(PathBuf::from);
        let critical = left.take("NEURON_RT_NUMERICAL_ERRORS_VERBOSITY");
        let settings = Self {
            topology,
            visible: left.take("NEURON_RT_VISIBLE_CORES"),
            cores: left.number("NEURON_RT_NUM_CORES")?,
            root: left.take("NEURON_RT_ROOT_COMM_ID"),
            nan_fails: left.switch("NEURON_FAIL_ON_NAN")?
                || critical.as_deref() == Some("critical"),
            overhead: left.number("FAKE_NRT_OVERHEAD_BYTES")?.unwrap_or(OVERHEAD),
            directory: directory.unwrap_or_else(|| std::env::temp_dir().join("fake-nrt")),
            names: left.names()?,
            faults: left.take("FAKE_NRT_FAULTS").map(PathBuf::from),
            journal: left.take("FAKE_NRT_JOURNAL").map(PathBuf::from),
            timeout: left.seconds("FAKE_NRT_TIMEOUT")?,
            latency: left.latency()?,
            races: left.switch("FAKE_NRT_ALLOW_RACES")?,
            leaks_abort: left.leaks()?,
            version: left.version()?,
            reinit: left.switch("FAKE_NRT_REINIT")?,
            plugin: left.take("APPLIANCE_XLA_CPU").map(PathBuf::from),
        };
        left.refuse_unknown()?;
        Ok(settings)
    }
}

/// Variables that nobody has taken yet. An empty one is none.
struct Variables(BTreeMap<String, String>);

impl Variables {
    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        let parse = |value: String| {
            let number = value.trim().parse();
            number.map_err(|_| refuse!(INVALID, "{name}={value} is no number that fits"))
        };
        self.take(name).map(parse).transpose()
    }

    fn switch(&mut self, name: &str) -> Result<bool, Failure> {
        match self.take(name).as_deref() {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => Err(refuse!(INVALID, "{name}={other}: 0 or 1")),
        }
    }

    fn seconds(&mut self, name: &str) -> Result<Option<Duration>, Failure> {
        let Some(seconds) = self.number::<f64>(name)? else {
            return Ok(None);
        };
        let duration = Duration::try_from_secs_f64(seconds);
        let duration = duration.map_err(|error| refuse!(INVALID, "{name}={seconds}: {error}"))?;
        Ok(Some(duration))
    }

    fn names(&mut self) -> Result<Names, Failure> {
        let form = self.take("FAKE_NRT_NAMES");
        form.map_or(Ok(Names::Attributes), |form| form.parse())
    }

    fn latency(&mut self) -> Result<Option<Duration>, Failure> {
        let latency = self.number("FAKE_NRT_LATENCY_US")?;
        let skip = match self.take("FAKE_NRT_EXECUTE").as_deref() {
            None | Some("run") => false,
            Some("skip") => true,
            Some(other) => return Err(refuse!(INVALID, "FAKE_NRT_EXECUTE={other}: run or skip")),
        };
        Ok(latency.or(skip.then_some(0)).map(Duration::from_micros))
    }

    fn leaks(&mut self) -> Result<bool, Failure> {
        match self.take("FAKE_NRT_LEAKS").as_deref() {
            None | Some("report") => Ok(false),
            Some("abort") => Ok(true),
            Some(other) => Err(refuse!(INVALID, "FAKE_NRT_LEAKS={other}: report or abort")),
        }
    }

    /// The version of the runtime of SDK 2.32 unless told otherwise.
    fn version(&mut self) -> Result<[u64; 4], Failure> {
        let text = self.take("FAKE_NRT_VERSION");
        let text = text.as_deref().unwrap_or("2.34.10.0");
        let parts: Result<Vec<u64>, _> = text.split('.').map(str::parse).collect();
        match parts.as_deref() {
            Ok([major, minor, patch]) => Ok([*major, *minor, *patch, 0]),
            Ok([major, minor, patch, maintenance]) => Ok([*major, *minor, *patch, *maintenance]),
            _ => Err(refuse!(
                INVALID,
                "FAKE_NRT_VERSION={text}: such as 2.34.10.0"
            )),
        }
    }

    /// A variable of ours with a typing error would make a test prove nothing.
    fn refuse_unknown(&self) -> Result<(), Failure> {
        match self.0.keys().find(|name| name.starts_with(PREFIX)) {
            None => Ok(()),
            Some(name) => Err(refuse!(INVALID, "{name}: there is no such variable")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Settings::read(variables.iter().map(own))
    }

    #[test]
    fn an_empty_environment_is_a_small_trainium2() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.topology.instance.name, "trn2.3xlarge");
        assert_eq!(settings.topology.cores(), 4);
        assert_eq!(settings.version, [2, 34, 10, 0]);
        assert_eq!((settings.latency, settings.timeout), (None, None));
    }

    #[test]
    fn skipping_is_a_latency_of_nothing() {
        let latency = |variables: &[(&str, &str)]| read(variables).unwrap().latency;
        assert_eq!(
            latency(&[("FAKE_NRT_EXECUTE", "skip")]),
            Some(Duration::ZERO)
        );
        let both = [
            ("FAKE_NRT_EXECUTE", "skip"),
            ("FAKE_NRT_LATENCY_US", "5000"),
        ];
        assert_eq!(latency(&both), Some(Duration::from_millis(5)));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (name, value) in [
            ("FAKE_NRT_LATENCY", "5"),
            ("FAKE_NRT_LATENCY_US", "soon"),
            ("FAKE_NRT_NAMES", "nice"),
            ("FAKE_NRT_VERSION", "2.34"),
            ("FAKE_NRT_TIMEOUT", "-1"),
            ("FAKE_NRT_ALLOW_RACES", "yes"),
            ("NEURON_RT_NUM_CORES", "-1"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn nan_fails_only_if_asked() {
        assert!(!read(&[]).unwrap().nan_fails);
        assert!(read(&[("NEURON_FAIL_ON_NAN", "1")]).unwrap().nan_fails);
        let critical = [("NEURON_RT_NUMERICAL_ERRORS_VERBOSITY", "critical")];
        assert!(read(&critical).unwrap().nan_fails);
    }
}
