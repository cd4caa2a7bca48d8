//! The table of settings, and their typed, valid values.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::raw::{ConfigError, Origin, Raw};
use super::value::{
    Backend, ByteSize, Cloud, Form, Isolation, KvPrecision, LogFormat, ParameterPath, Precision,
    Price, Rebalance, RequestFilter, Secret, SecretLines, SelfTest, ShedStatus, Value as _,
};
use crate::access::Money;
use crate::access::keys::Keys;
use crate::artifacts::Artifacts;
use crate::source::{HubModel, Source};

/// What the environment variables of settings begin with.
pub(super) const PREFIX: &str = "APPLIANCE_";

/// One setting, for those who list them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Its one name, as in `--name`.
    pub name: &'static str,
    /// The text of its default; empty if it must be set.
    pub default: &'static str,
    /// What it does, in one or two sentences.
    pub help: &'static str,
    /// How its values are written.
    pub form: Form,
    /// Other environment variables that are honoured, after its own.
    pub also: &'static [&'static str],
    /// What a change of it means to a server that runs.
    pub scope: Scope,
}

/// What a change of a setting means to a server that runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Nothing: it is read as the process starts. The parameter store cannot have it.
    Start,
    /// The model is opened anew and takes the place of the one that serves.
    Model,
    /// It holds from then on.
    Live,
}

impl Scope {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Model => "model",
            Self::Live => "live",
        }
    }
}

impl Setting {
    /// Its environment variable: `APPLIANCE_MAX_QUEUE` for `max-queue`.
    pub fn variable(&self) -> String {
        let name = self.name.to_uppercase().replace('-', "_");
        format!("{PREFIX}{name}")
    }

    /// Where a value of that origin stands, in the words of whoever wrote it there.
    pub(super) fn place(&self, origin: &Origin) -> String {
        match origin {
            Origin::Flag => format!("--{}", self.name),
            Origin::Environment(variable) => variable.clone(),
            Origin::Parameter(path) => path.clone(),
            Origin::UserData => format!("{} in the user data", self.name),
            Origin::File(path) => format!("{} in {}", self.name, path.display()),
            Origin::Default => format!("the default of {}", self.name),
        }
    }

    /// `text` as it may be shown.
    pub(super) fn shown(&self, text: &str) -> String {
        let hide = self.form.secret && text != self.default;
        if hide { "***" } else { text }.to_owned()
    }
}

macro_rules! settings {
    ($(
        $(#[doc = $help:literal])+
        $scope:ident $field:ident: $type:ty, $name:literal = $default:literal $(, also $also:literal)?;
    )*) => {
        /// Every setting, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            name: $name,
            default: $default,
            help: concat!($($help),+),
            form: <$type>::FORM,
            also: &[$($also)?],
            scope: Scope::$scope,
        }),*];

        /// The values of all settings, typed and valid. Where the type is an `Option`, `None` is `auto`.
        #[derive(Clone, Debug)]
        pub struct Resolved {
            $(#[doc = concat!($($help),+)] pub $field: $type,)*
        }

        impl Resolved {
            fn read(raw: &Raw) -> Result<Self, ConfigError> {
                Ok(Self { $($field: raw.parse($name)?,)* })
            }
        }
    };
}

settings! {
    /// The address and port to listen on.
    Start listen: SocketAddr, "listen" = "127.0.0.1:8000";
    /// The model to serve: a directory in the Hugging Face layout, s3://BUCKET/PREFIX, or hf://ORGANISATION/NAME, followed by @REVISION if that is not main.
    Model model: Option<Source>, "model" = "";
    /// The branch, tag or commit of an hf:// model, if its source names none; auto is main.
    Model revision: Option<String>, "revision" = "auto";
    /// The model's name in the API; auto is the last part of its source.
    Model served_model_name: Option<String>, "served-model-name" = "auto";
    /// The device to run on; auto takes the best that is there.
    Model backend: Backend, "backend" = "auto";
    /// How many copies of the model serve side by side, each on an equal part of the device and with a KV cache of its own.
    Model replicas: NonZeroU32, "replicas" = "1";
    /// Where the neuron backend finds what appliance prepare compiled: a directory or s3://BUCKET/PREFIX. Only that backend needs it.
    Model artifacts: Option<Artifacts>, "artifacts" = "auto";
    /// Compile what artifacts lacks as the model is opened, with the command that the refusal would name. It takes minutes to hours, and neuronx-cc.
    Model prepare_on_boot: bool, "prepare-on-boot" = "false";
    /// How long a step of the device may take before it counts as hung and the server ends: never less than ten times what steps take.
    Model device_timeout: Duration, "device-timeout" = "30s";
    /// The number format of the weights; auto is what suits the device. fp8 and int8 need a device that has them.
    Model dtype: Precision, "dtype" = "auto";
    /// The number format of keys and values; auto is what the device was prepared for. The cpu backend has f32.
    Model kv_dtype: KvPrecision, "kv-dtype" = "auto";
    /// What a model has to pass before it is served: golden compares its answers to fixed prompts with those that are known; token is content with any, for devices that compute nothing.
    Model self_test: SelfTest, "self-test" = "golden";
    /// The most tokens of a sequence, prompt and output together; auto is the model's own limit.
    Model max_context: Option<NonZeroU32>, "max-context" = "auto";
    /// The most continuations that run at once.
    Model max_running: NonZeroU32, "max-running" = "64";
    /// The most requests that wait; more are refused with shed-status.
    Model max_queue: u32, "max-queue" = "1024";
    /// The most prompt tokens that wait, all requests together; more are refused with shed-status.
    Model max_queue_tokens: u64, "max-queue-tokens" = "1000000";
    /// The most tokens of a step of the device, prefill and decode together.
    Model step_tokens: NonZeroU32, "step-tokens" = "512";
    /// How long a step may take while streams wait for their next token: prompts are processed in chunks that fit.
    Model step_time: Duration, "step-time" = "500ms";
    /// Tokens that the KV cache holds, all sequences together; auto is what memory allows.
    Model kv_tokens: Option<u64>, "kv-tokens" = "auto";
    /// Processor cores that the cpu backend computes on; auto is all.
    Model cores: Option<NonZeroU32>, "cores" = "auto";
    /// Whether this machine belongs to an AWS account whose services are used: auto finds out whether it is an EC2 instance.
    Start cloud: Cloud, "cloud" = "auto";
    /// The path in the SSM parameter store that holds settings, one parameter each; auto is the instance's tag appliance:ssm-prefix, else /appliance/default.
    Start ssm_prefix: Option<ParameterPath>, "ssm-prefix" = "auto";
    /// How often the parameter store is asked for changes, give or take a fifth.
    Start ssm_interval: Duration, "ssm-interval" = "30s";
    /// Where what must outlive a restart is kept, such as the last good settings; auto is what systemd gives, else $XDG_STATE_HOME/appliance, else ~/.local/state/appliance.
    Start state_dir: Option<PathBuf>, "state-dir" = "auto";
    /// Whether CloudWatch is told how the server does; auto is whether there is an account to tell.
    Live cloudwatch: Option<bool>, "cloudwatch" = "auto";
    /// How often CloudWatch is told.
    Live cloudwatch_interval: Duration, "cloudwatch-interval" = "10s";
    /// Let CloudWatch tell instances of a group apart, which makes each instance's metrics cost what a group's do.
    Live cloudwatch_instance: bool, "cloudwatch-instance" = "false";
    /// What the instance costs an hour, in dollars: CloudWatch is told how many tokens a dollar buys.
    Live price_per_hour: Option<Price>, "price-per-hour" = "auto";
    /// The key for the places under /admin, as a bearer token; auto closes them.
    Live admin_key: Option<Secret>, "admin-key" = "auto";
    /// How long running requests may go on after SIGTERM.
    Live grace: Duration, "grace" = "120s";
    /// How long requests are still taken on once the instance is to be taken away, while readiness is off already and the load balancer notices.
    Live deregistration_delay: Duration, "deregistration-delay" = "20s";
    /// What a rebalance notice of EC2 comes to: drain turns readiness off, ignore does nothing.
    Live rebalance: Rebalance, "rebalance" = "drain";
    /// The group's lifecycle hook for launching; auto is its only one, or the one whose name holds appliance.
    Start launch_hook: Option<String>, "launch-hook" = "auto";
    /// The group's lifecycle hook for terminating; auto likewise.
    Start terminate_hook: Option<String>, "terminate-hook" = "auto";
    /// After how many starts that ended badly within ten minutes the instance is reported unhealthy to its Auto Scaling group.
    Start unhealthy_after: NonZeroU32, "unhealthy-after" = "3";
    /// How long a request may take from its arrival to its last token.
    Model request_timeout: Duration, "request-timeout" = "10m";
    /// How long a connection may stay without a byte from the client while it owes a request.
    Start idle_timeout: Duration, "idle-timeout" = "75s";
    /// The largest request body.
    Start body_limit: ByteSize, "body-limit" = "32MiB";
    /// The most open connections; more wait to be accepted.
    Start max_connections: NonZeroU32, "max-connections" = "4096";
    /// The HTTP status of requests refused because the server is too busy.
    Live shed_status: ShedStatus, "shed-status" = "503";
    /// The least important log lines that are written.
    Live log_level: LevelFilter, "log-level" = "info";
    /// How log lines look.
    Start log_format: LogFormat, "log-format" = "human";
    /// Let a request bring its own chat template. Templates are programs: only for clients that you trust.
    Live trust_request_chat_template: bool, "trust-request-chat-template" = "false";
    /// Where fetched models are kept, in the layout of Hugging Face's own cache; auto is $HF_HOME/hub, else ~/.cache/huggingface/hub.
    Start cache_dir: Option<PathBuf>, "cache-dir" = "auto", also "HF_HUB_CACHE";
    /// A directory that keeps weights which were streamed from s3://, for the next start: of a disk that is faster than the network. auto keeps none.
    Start weights_cache: Option<PathBuf>, "weights-cache" = "auto";
    /// How much weights-cache may hold; what was not used for longest makes room.
    Start weights_cache_size: ByteSize, "weights-cache-size" = "256GiB";
    /// The hub that hf:// names models of.
    Live hub_endpoint: String, "hub-endpoint" = "https://huggingface.co", also "HF_ENDPOINT";
    /// The token that the hub asks for, for models that are not public.
    Live hub_token: Option<Secret>, "hub-token" = "auto", also "HF_TOKEN";
    /// A file of PEM with the certificate to show and those that vouch for it; auto is plain HTTP. A path that begins with $CREDENTIALS_DIRECTORY/ is where systemd's LoadCredential puts it. It is read again when it changes.
    Start tls_certificate: Option<PathBuf>, "tls-certificate" = "auto";
    /// A file of PEM with its key, not encrypted; found and read again like the certificate.
    Start tls_key: Option<PathBuf>, "tls-key" = "auto";
    /// The keys of clients, one JSON object a line, as appliance keys new writes them; auto serves whoever can connect, unless keys-file is set.
    Live keys: Option<SecretLines>, "keys" = "auto";
    /// A file of the same lines, which is read again when it changes.
    Live keys_file: Option<PathBuf>, "keys-file" = "auto";
    /// Who shares cached prefixes: all, the keys of a project, or each key with itself. How fast an answer begins tells whether its prompt was cached.
    Live isolate_cache: Isolation, "isolate-cache" = "none";
    /// What happens to prompts that hold what looks like an e-mail address, a telephone or card number, an AWS key id or a national identity number: mask puts its name in its place, refuse refuses the request.
    Live request_filter: RequestFilter, "request-filter" = "off";
    /// Keep the same out of the paths and request ids in audit lines and the ledger.
    Live redact_audit: bool, "redact-audit" = "false";
    /// What a million tokens of prompts cost, in dollars: for the ledger and the budgets of keys.
    Live price_input: Money, "price-input" = "0";
    /// What a million tokens of prompts cost that were cached; auto is price-input.
    Live price_cached: Option<Money>, "price-cached" = "auto";
    /// What a million tokens of answers cost.
    Live price_output: Money, "price-output" = "0";
    /// The file that gets a JSON line for each request that ended; auto is none, and then what keys have used is forgotten with the process.
    Start ledger: Option<PathBuf>, "ledger" = "auto";
    /// How large that file may grow before it is put aside; the newest 16 of them are kept.
    Start ledger_size: ByteSize, "ledger-size" = "64MiB";
}

impl Resolved {
    /// Parses all settings; the first that is not valid is the error.
    pub fn parse(raw: &Raw) -> Result<Self, ConfigError> {
        let resolved = Self::early(raw)?;
        resolved.source()?;
        Ok(resolved)
    }

    /// The model to serve.
    ///
    /// # Errors
    /// None is named.
    pub fn source(&self) -> Result<&Source, ConfigError> {
        self.model.as_ref().ok_or(ConfigError::NoModel)
    }

    /// The same without a model, which may be named later.
    pub fn early(raw: &Raw) -> Result<Self, ConfigError> {
        let mut resolved = Self::read(raw)?;
        if let (Some(Source::Hub(model)), Some(revision)) =
            (&mut resolved.model, &resolved.revision)
            && model.revision == HubModel::MAIN
        {
            model.revision.clone_from(revision);
        }
        if resolved.backend == Backend::Cpu {
            resolved.dtype.check_cpu()?;
            resolved.kv_dtype.check_cpu()?;
        }
        resolved.check_keys()?;
        if resolved.tls_certificate.is_some() != resolved.tls_key.is_some() {
            return Err(ConfigError::Conflict(
                "tls-certificate and tls-key belong together: set both or none".to_owned(),
            ));
        }
        Ok(resolved)
    }

    /// Refuses keys that are no good, and keys of two places.
    fn check_keys(&self) -> Result<(), ConfigError> {
        match (&self.keys, &self.keys_file) {
            (Some(_), Some(_)) => Err(ConfigError::Conflict(
                "keys and keys-file are both set: use one of them".to_owned(),
            )),
            (Some(lines), None) => match Keys::parse(lines.reveal()) {
                Ok(_) => Ok(()),
                Err(why) => Err(ConfigError::Conflict(format!("keys: {why}"))),
            },
            (None, _) => Ok(()),
        }
    }
}

impl Precision {
    /// Refuses formats that the cpu backend does not have.
    pub fn check_cpu(self) -> Result<(), ConfigError> {
        match self {
            Self::Auto | Self::Bf16 | Self::F32 => Ok(()),
            Self::Fp8 | Self::Int8 => Err(ConfigError::Conflict(format!(
                "dtype {} is not for the cpu backend: use auto, bf16 or f32",
                self.name()
            ))),
        }
    }
}

impl KvPrecision {
    /// Refuses formats that the cpu backend does not have.
    fn check_cpu(self) -> Result<(), ConfigError> {
        match self {
            Self::Auto | Self::F32 => Ok(()),
            Self::Bf16 | Self::Fp8 => Err(ConfigError::Conflict(format!(
                "kv-dtype {} is not for the cpu backend: use auto or f32",
                self.name()
            ))),
        }
    }
}
