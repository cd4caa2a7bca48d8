//! The types that settings have, and how each is written.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use crate::artifacts::Artifacts;
use crate::source::Source;

/// How the values of a type are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    /// What stands for a value in a usage line, such as `DURATION`.
    pub placeholder: &'static str,
    /// What is allowed, to stand after "is not", such as `a duration like 500ms, 120s or 5m`.
    pub allowed: &'static str,
    /// A flag that may stand without a value, meaning `true`.
    pub switch: bool,
    /// Never shown.
    pub secret: bool,
}

impl Form {
    /// A plain value.
    pub(crate) const fn plain(placeholder: &'static str, allowed: &'static str) -> Self {
        Self {
            placeholder,
            allowed,
            switch: false,
            secret: false,
        }
    }
}

/// A type of setting.
pub trait Value: Sized {
    /// How its values are written.
    const FORM: Form;

    /// Reads one; `None` if the text is not of this form.
    fn parse(text: &str) -> Option<Self>;
}

/// A setting whose default, written `auto`, is worked out elsewhere; or one that may have no value yet.
impl<T: Value> Value for Option<T> {
    const FORM: Form = T::FORM;

    fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" | "" => Some(None),
            _ => T::parse(text).map(Some),
        }
    }
}

macro_rules! parsed {
    ($($type:ty: $placeholder:literal, $allowed:literal;)*) => {$(
        impl Value for $type {
            const FORM: Form = Form::plain($placeholder, $allowed);

            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}

parsed! {
    SocketAddr: "ADDRESS:PORT", "an IP address and a port, like 127.0.0.1:8000 or [::]:8000";
    u32: "NUMBER", "a whole number from 0 to 4294967295";
    u64: "NUMBER", "a whole number from 0";
    NonZeroU32: "NUMBER", "a whole number from 1 to 4294967295";
    Source: "SOURCE", "a directory, hf://ORGANISATION/NAME[@REVISION] or s3://BUCKET/PREFIX";
}

impl Value for Artifacts {
    const FORM: Form = Form::plain(
        "DIR|s3://BUCKET/PREFIX",
        "a directory, file:///DIR or s3://BUCKET/PREFIX",
    );

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for String {
    const FORM: Form = Form::plain("TEXT", "a text that is not empty");

    fn parse(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| text.to_owned())
    }
}

impl Value for PathBuf {
    const FORM: Form = Form::plain("DIR", "a path");

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
}

impl Value for bool {
    const FORM: Form = Form {
        switch: true,
        ..Form::plain("true|false", "true or false")
    };

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Value for Duration {
    const FORM: Form = Form::plain("DURATION", "a duration like 500ms, 120s, 5m or 1h");

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = number_and_unit(text)?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        number.checked_mul(milliseconds).map(Duration::from_millis)
    }
}

/// A price in dollars, more than nothing.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Price(pub f64);

impl Value for Price {
    const FORM: Form = Form::plain("DOLLARS", "a price in dollars like 0.7582");

    fn parse(text: &str) -> Option<Self> {
        let price: f64 = text.parse().ok()?;
        // A cent for a thousand hours, and a million dollars for one.
        (1e-5..=1e6).contains(&price).then_some(Self(price))
    }
}

/// A number of bytes, written like `32MiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ByteSize(pub u64);

impl Value for ByteSize {
    const FORM: Form = Form::plain("SIZE", "a size like 4096B, 512KiB, 32MiB or 2GiB");

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = number_and_unit(text)?;
        let bytes = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.checked_mul(bytes).map(ByteSize)
    }
}

/// Splits `120s` into 120 and `s`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let unit = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    Some((number.parse().ok()?, unit))
}

/// A text that is never shown: a token or a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Value for Secret {
    const FORM: Form = Form {
        secret: true,
        ..Form::plain("SECRET", "a text of visible ASCII letters")
    };

    fn parse(text: &str) -> Option<Self> {
        let visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        visible.then(|| Self(text.to_owned()))
    }
}

/// A path of the SSM parameter store, such as `/appliance/production`: at most 13 levels, so that one of
/// ours fits below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParameterPath(String);

impl ParameterPath {
    /// The path: it begins with `/` and does not end with one.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for ParameterPath {
    const FORM: Form = Form::plain(
        "PATH",
        "a path like /appliance/production, of letters, digits, dots, hyphens and underscores",
    );

    fn parse(text: &str) -> Option<Self> {
        let levels: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let good = |level: &&str| !level.is_empty() && level.bytes().all(allowed);
        (levels.len() <= 13 && levels.iter().all(good)).then(|| Self(text.to_owned()))
    }
}

/// Lines that are never shown: what [`Keys`](crate::access::keys::Keys) reads.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretLines(String);

impl SecretLines {
    /// The lines, for the one who needs them.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretLines(..)")
    }
}

impl Value for SecretLines {
    const FORM: Form = Form {
        secret: true,
        ..Form::plain(
            "LINES",
            "one or more lines, as appliance keys new writes them",
        )
    };

    fn parse(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| Self(text.to_owned()))
    }
}

/// An enum whose values are written by name.
macro_rules! choices {
    ($(
        $(#[$doc:meta])* $type:ident, $allowed:literal: {
            $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)*
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// How it is written.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }

        impl Value for $type {
            const FORM: Form = Form::plain($allowed, concat!("one of ", $allowed));

            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    )*};
}

choices! {
    /// The device to run on.
    Backend, "auto|neuron|cuda|cpu": {
        /// The best that is there.
        Auto = "auto",
        /// AWS Inferentia or Trainium.
        Neuron = "neuron",
        /// An NVIDIA GPU.
        Cuda = "cuda",
        /// The host's processor.
        Cpu = "cpu",
    }

    /// Whether the machine belongs to an AWS account whose services are used.
    Cloud, "auto|aws|none": {
        /// It does if it is an EC2 instance.
        Auto = "auto",
        /// It does.
        Aws = "aws",
        /// It does not.
        None = "none",
    }

    /// The number format of the weights.
    Precision, "auto|bf16|f32|fp8|int8": {
        /// What suits the device and the checkpoint.
        Auto = "auto",
        /// bfloat16.
        Bf16 = "bf16",
        /// 32-bit floating point.
        F32 = "f32",
        /// 8-bit floating point.
        Fp8 = "fp8",
        /// 8-bit integers.
        Int8 = "int8",
    }

    /// The number format of keys and values.
    KvPrecision, "auto|bf16|fp8|f32": {
        /// What the device has, or was prepared for.
        Auto = "auto",
        /// bfloat16.
        Bf16 = "bf16",
        /// 8-bit floating point.
        Fp8 = "fp8",
        /// 32-bit floating point.
        F32 = "f32",
    }

    /// What a model has to pass before it is served.
    SelfTest, "golden|token": {
        /// Prompts whose answers are known.
        Golden = "golden",
        /// One token, whatever it is.
        Token = "token",
    }

    /// What a notice of EC2 that the instance is likely to be taken away comes to.
    Rebalance, "drain|ignore": {
        /// The server is no longer ready; who asks all the same is served until the end comes.
        Drain = "drain",
        /// Nothing.
        Ignore = "ignore",
    }

    /// How log lines look.
    LogFormat, "human|json": {
        /// For a terminal.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }

    /// Who shares cached prefixes.
    Isolation, "none|project|key": {
        /// All requests.
        None = "none",
        /// Those of the keys of a project.
        Project = "project",
        /// Those of a key.
        Key = "key",
    }

    /// What happens to prompts that hold what looks like a person's or an account's own.
    RequestFilter, "off|mask|refuse": {
        /// Nothing.
        Off = "off",
        /// Its name takes its place.
        Mask = "mask",
        /// The request is refused.
        Refuse = "refuse",
    }

    /// The HTTP status of a request that the server is too busy for.
    ShedStatus, "503|429": {
        /// Service Unavailable, as vLLM answers.
        ServiceUnavailable = "503",
        /// Too Many Requests, as some gateways expect.
        TooManyRequests = "429",
    }
}

impl ShedStatus {
    /// The status code.
    pub fn code(self) -> u16 {
        match self {
            Self::ServiceUnavailable => 503,
            Self::TooManyRequests => 429,
        }
    }
}

impl Value for LevelFilter {
    const FORM: Form = Form::plain(
        "off|error|warn|info|debug|trace",
        "one of off|error|warn|info|debug|trace",
    );

    fn parse(text: &str) -> Option<Self> {
        // The library's own parser also takes numbers and any case: one way to write it is enough.
        ["off", "error", "warn", "info", "debug", "trace"]
            .contains(&text)
            .then(|| text.parse().ok())
            .flatten()
    }
}
