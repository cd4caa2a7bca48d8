//! Where settings come from: flags, the environment, a file. Each gives a layer of texts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use super::raw::{ConfigError, Origin, Raw};
use super::resolved::{PREFIX, Resolved, SETTINGS, Scope, Setting};
use crate::hub::Hub;

/// The configuration file that is read if it exists and no other is named.
const DEFAULT_FILE: &str = "/etc/appliance/appliance.toml";

/// The environment variable that names the configuration file.
const CONFIG: &str = "APPLIANCE_CONFIG";

/// The settings that one source has.
#[derive(Clone, Default, Debug)]
pub struct Layer {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Layer {
    /// The text of the setting `name` and where it stands.
    pub fn value(&self, name: &str) -> Option<(String, Origin)> {
        self.values.get(name).cloned()
    }

    /// What the command line has of `settings`.
    fn flags<'a>(matches: &ArgMatches, settings: impl Iterator<Item = &'a Setting>) -> Self {
        let mut layer = Self::default();
        for setting in settings {
            if let Some(text) = matches.get_one::<String>(setting.name) {
                let value = (text.clone(), Origin::Flag);
                layer.values.insert(setting.name, value);
            }
        }
        layer
    }

    /// What the environment has: `variable` looks one up. Empty is as good as not set.
    pub fn environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut layer = Self::default();
        for setting in SETTINGS {
            let also = setting.also.iter().map(ToString::to_string);
            let set = std::iter::once(setting.variable())
                .chain(also)
                .find_map(|name| {
                    let text = variable(&name).filter(|text| !text.is_empty())?;
                    Some((text, Origin::Environment(name)))
                });
            layer.values.extend(set.map(|set| (setting.name, set)));
        }
        layer
    }

    /// Those of `names` that look like settings and are none, most likely misspelt: each with the variable
    /// whose name is nearest.
    pub fn unknown(names: impl Iterator<Item = String>) -> Vec<(String, String)> {
        let known = |name: &str| {
            let of_tests = name.starts_with("APPLIANCE_TEST_");
            let of_setting = SETTINGS.iter().any(|setting| setting.variable() == name);
            name == CONFIG || of_tests || of_setting
        };
        let ours = names.filter(|name| name.starts_with(PREFIX) && !known(name));
        ours.map(|name| {
            let key = name[PREFIX.len()..].to_lowercase().replace('_', "-");
            let nearest = named(nearest(&key)).map(Setting::variable);
            (name, nearest.unwrap_or_default())
        })
        .collect()
    }

    /// What the TOML text of the file at `path` has.
    pub fn file(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        Self::toml(&name, text, &Origin::File(path.to_owned()))
    }

    /// What an instance's user data has, if it is TOML: what cloud-init knows what to do with is not ours.
    pub fn user_data(text: &str) -> Result<Self, ConfigError> {
        let first = text.trim_start().lines().next().unwrap_or_default();
        let mime = first.to_ascii_lowercase().starts_with("content-type:");
        let mime = mime || first.to_ascii_lowercase().starts_with("mime-version:");
        let of_cloud_init = ["#!", "#cloud-", "#include", "#part-handler", "## template:"];
        if mime || of_cloud_init.iter().any(|mark| first.starts_with(mark)) {
            return Ok(Self::default());
        }
        Self::toml("the user data", text, &Origin::UserData)
    }

    /// What the parameters under `prefix` have: `parameters` by what follows it. Those of `keys/` are
    /// lines of the setting `keys`.
    pub fn parameters(
        prefix: &str,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (key, value) in parameters {
            let path = format!("{prefix}/{key}");
            let name = if key.starts_with("keys/") {
                "keys"
            } else {
                key
            };
            let setting = named(name).ok_or_else(|| ConfigError::UnknownKey {
                file: prefix.to_owned(),
                nearest: nearest(key),
                key: key.clone(),
            })?;
            if setting.scope == Scope::Start {
                let name = setting.name;
                return Err(ConfigError::Early { path, name });
            }
            if setting.name == "keys" {
                layer.add_keys(prefix, value);
                continue;
            }
            let value = (value.trim().to_owned(), Origin::Parameter(path));
            layer.values.insert(setting.name, value);
        }
        Ok(layer)
    }

    /// Keys of clients may stand in a parameter each: they fit where all of them would not.
    fn add_keys(&mut self, prefix: &str, lines: &str) {
        let path = Origin::Parameter(format!("{prefix}/keys"));
        let (keys, _) = (self.values.entry("keys")).or_insert((String::new(), path));
        keys.push_str(lines.trim());
        keys.push('\n');
    }

    fn toml(name: &str, text: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError::File {
            file: name.to_owned(),
            why,
        };
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| wrong(error.to_string()))?;
        let mut layer = Self::default();
        for (key, value) in table {
            let setting = named(&key).ok_or_else(|| ConfigError::UnknownKey {
                file: name.to_owned(),
                nearest: nearest(&key),
                key: key.clone(),
            })?;
            let text = scalar(value)
                .ok_or_else(|| wrong(format!("{key} is not a text, a number, true or false")))?;
            layer.values.insert(setting.name, (text, origin.clone()));
        }
        Ok(layer)
    }
}

fn named(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn scalar(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// The setting whose name takes the fewest edits to become `key`.
fn nearest(key: &str) -> &'static str {
    nearest_of(key, SETTINGS.iter().map(|setting| setting.name))
}

/// The one of `names` that takes the fewest edits to become `key`; there is one at least.
pub(crate) fn nearest_of(key: &str, names: impl Iterator<Item = &'static str>) -> &'static str {
    (names.min_by_key(|name| edits(key, name))).expect("there are names")
}

/// Levenshtein's distance.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// The flags of `appliance serve`: one a setting, `--config FILE` and `--print-config`.
#[derive(Clone, Default, Debug)]
pub struct Flags {
    layer: Layer,
    config: Option<PathBuf>,
    /// Show the settings instead of serving.
    pub print_config: bool,
}

/// The layers of settings, the strongest first.
#[derive(Clone, Default, Debug)]
pub struct Layers {
    flags: Layer,
    environment: Layer,
    /// What the parameter store has.
    pub parameters: Layer,
    /// What the instance was launched with.
    pub user_data: Layer,
    file: Layer,
}

impl Layers {
    /// Each setting from the strongest layer that has it.
    pub fn raw(&self) -> Raw {
        Raw::new(&[
            &self.flags,
            &self.environment,
            &self.parameters,
            &self.user_data,
            &self.file,
        ])
    }
}

impl Flags {
    /// All settings: these flags over the process's environment over the configuration file.
    pub fn resolve(&self) -> Result<Raw, ConfigError> {
        Ok(self.layers()?.raw())
    }

    /// The layers that this process has at hand: these flags, its environment, the configuration file.
    pub fn layers(&self) -> Result<Layers, ConfigError> {
        let environment = |name: &str| std::env::var(name).ok();
        let file = self.file_layer(environment(CONFIG).map(PathBuf::from))?;
        Ok(Layers {
            flags: self.layer.clone(),
            environment: Layer::environment(environment),
            file,
            ..Layers::default()
        })
    }

    /// Variables of the process's environment that look like settings and are none.
    pub fn unknown_variables() -> Vec<(String, String)> {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        Layer::unknown(names)
    }

    fn file_layer(&self, variable: Option<PathBuf>) -> Result<Layer, ConfigError> {
        let named = self.config.clone().or(variable);
        let path = named.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        match std::fs::read_to_string(&path) {
            Ok(text) => Layer::file(&path, &text),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Layer::default())
            }
            Err(error) => Err(ConfigError::File {
                file: path.display().to_string(),
                why: error.to_string(),
            }),
        }
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            layer: Layer::flags(matches, SETTINGS.iter()),
            config: matches.get_one::<OsString>("config").map(PathBuf::from),
            print_config: matches.get_flag("print-config"),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(OsString))
            .help(format!(
                "Read settings from this file [default: {DEFAULT_FILE}, if it is there]"
            ));
        let print = Arg::new("print-config")
            .long("print-config")
            .action(ArgAction::SetTrue)
            .help("Show every setting and where it came from, then exit");
        command
            .args(SETTINGS.iter().map(flag))
            .arg(config)
            .arg(print)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The flags of a verb that takes some of the settings.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $($setting:literal),+) => {
        $(#[$doc])*
        #[derive(Clone, Default, Debug)]
        pub struct $name {
            layer: Layer,
        }

        impl $name {
            fn settings() -> impl Iterator<Item = &'static Setting> {
                [$($setting),+].into_iter().filter_map(named)
            }

            /// All settings: these flags over the process's environment over the configuration file.
            fn resolve(&self) -> Result<Raw, ConfigError> {
                let flags = Flags {
                    layer: self.layer.clone(),
                    ..Flags::default()
                };
                flags.resolve()
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                let layer = Layer::flags(matches, Self::settings());
                Ok(Self { layer })
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl clap::Args for $name {
            fn augment_args(command: Command) -> Command {
                command.args(Self::settings().map(flag))
            }

            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }
    };
}

flags! {
    /// The flags of verbs that fetch a model and do not serve it: where from, and where to.
    HubFlags: "cache-dir", "hub-endpoint", "hub-token"
}

flags! {
    /// The flags of verbs that get ready to serve a model: what it is and how it will be served.
    LoadFlags: "model", "backend", "artifacts", "dtype", "kv-dtype", "max-context", "max-running",
        "step-tokens", "kv-tokens", "cache-dir", "hub-endpoint", "hub-token"
}

impl HubFlags {
    /// The hub that these flags, the environment and the configuration file name.
    pub fn hub(&self) -> Result<Hub, ConfigError> {
        let raw = self.resolve()?;
        Ok(Hub::new(
            raw.parse("hub-endpoint")?,
            raw.parse("hub-token")?,
            raw.parse("cache-dir")?,
        ))
    }
}

impl LoadFlags {
    /// All settings, as serve would have them.
    pub fn resolved(&self) -> Result<Resolved, ConfigError> {
        Resolved::parse(&self.resolve()?)
    }
}

fn flag(setting: &'static Setting) -> Arg {
    let default = match setting.default {
        "" => "required".to_owned(),
        default => format!("default: {default}"),
    };
    let arg = Arg::new(setting.name)
        .long(setting.name)
        .value_name(setting.form.placeholder)
        .help(format!("{} [{default}]", setting.help.trim()));
    if setting.form.switch {
        arg.num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    } else {
        arg
    }
}
