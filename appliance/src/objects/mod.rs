//! Objects of S3, or of a store that speaks its protocol: models and what was compiled for them, under a
//! prefix of a bucket.
//!
//! Everything here waits: it is called from plain threads, before there is anything to serve. The
//! client's own tasks run on a runtime of its own, so that a load does not slow the event loop down.

mod cache;
mod fetch;
mod manifest;
mod model;
mod put;
mod throttle;

use std::fmt;
use std::future::Future;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::StalledStreamProtectionConfig;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use crate::config::Cloud;
use crate::host::account::{Account, AccountError, told};

pub use cache::BlockCache;
pub use fetch::Object;
pub use manifest::{MANIFEST, Manifest};
pub use model::{FLOW, ObjectModel};

use throttle::Throttle;

/// How long the store may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long the store may take to begin an answer, and to send the next bytes of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often in a row asking may bring nothing before it is given up.
const ATTEMPTS: u32 = 6;

/// Threads of the client's runtime: one decrypts while the other does.
const THREADS: usize = 2;

/// A prefix of a bucket: `s3://bucket/prefix`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Prefix {
    /// The bucket.
    pub bucket: String,
    /// What the keys begin with, without a slash at either end; may be empty.
    pub prefix: String,
}

impl Prefix {
    /// The key of the object called `name` under the prefix.
    pub fn key(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    /// What to call that object in a message.
    pub fn url(&self, name: &str) -> String {
        format!("s3://{}/{}", self.bucket, self.key(name))
    }

    /// The prefix called `name` under this one.
    pub fn under(&self, name: &str) -> Self {
        Self {
            bucket: self.bucket.clone(),
            prefix: self.key(name),
        }
    }

    /// The last part: what a model is called that nobody has named.
    pub fn name(&self) -> &str {
        match self.prefix.rsplit('/').next() {
            None | Some("") => &self.bucket,
            Some(name) => name,
        }
    }
}

impl FromStr for Prefix {
    type Err = &'static str;

    /// What follows `s3://`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_bucket = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_bucket) {
            return Err("after s3:// comes the name of a bucket, such as s3://bucket/models/tiny");
        }
        let is_part = |part: &str| !["", ".", ".."].contains(&part);
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return Err("after the bucket comes a prefix without empty parts, . and ..");
        }
        if prefix.chars().any(char::is_control) {
            return Err("a prefix has no control characters");
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_str() {
            "" => write!(f, "s3://{}", self.bucket),
            prefix => write!(f, "s3://{}/{prefix}", self.bucket),
        }
    }
}

/// Why objects cannot be had or stored.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no account.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// There is no such object, or nothing under the prefix.
    #[error("there is no {url}: check bucket, prefix and region")]
    Absent {
        /// The object or prefix.
        url: String,
    },
    /// Who asks may not.
    #[error("{action} {url} is not allowed: {why}; allow it in the policy of the role or user")]
    Denied {
        /// What was asked, as IAM calls it.
        action: &'static str,
        /// The object or prefix.
        url: String,
        /// What the store said.
        why: String,
    },
    /// The object is not the one that it was when it was opened.
    #[error(
        "{url} was replaced while it was read; a prefix is a version: put another model under another prefix"
    )]
    Changed {
        /// The object.
        url: String,
    },
    /// The bytes are not those that the manifest says.
    #[error(
        "{url} is damaged: the SHA-256 of its bytes {from} to {to} is {found}, and {MANIFEST} says {expected}; store it again: appliance pull SOURCE --to s3://.."
    )]
    Damaged {
        /// The object.
        url: String,
        /// The first of the bytes.
        from: u64,
        /// The last.
        to: u64,
        /// What the manifest says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The store's answer makes no sense here.
    #[error("{url} cannot be used: {why}")]
    Answer {
        /// The object.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The store does not answer, or does not go on.
    #[error(
        "{action} {url} failed {ATTEMPTS} times in a row: {why}; check the network and the endpoint"
    )]
    Away {
        /// What was asked, as IAM calls it.
        action: &'static str,
        /// The object or prefix.
        url: String,
        /// What happened the last time.
        why: String,
    },
    /// A file of this host cannot be read or written.
    #[error("{path}: {why}")]
    Local {
        /// The file.
        path: String,
        /// Why not.
        why: io::Error,
    },
    /// The host lacks what the client needs.
    #[error("the client of the object store cannot start: {0}")]
    Host(io::Error),
}

/// What one call came to.
enum Stop {
    /// It may go better the next time.
    Again(String),
    /// The same, and the store wants to be asked less.
    Busy(String),
    /// It will not.
    Failed(ObjectError),
}

/// A client of the object store. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Objects(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    throttle: Throttle,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

/// An object as a listing has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// What follows the prefix.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Changes with its bytes.
    pub etag: String,
}

/// Objects that one prefix may hold: more are somebody else's.
const MOST: usize = 20_000;

impl Objects {
    /// A client with the account of this machine or of the environment.
    ///
    /// # Errors
    /// Nothing says which region.
    pub fn open() -> Result<Self, ObjectError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("objects")
            .enable_all()
            .build()
            .map_err(ObjectError::Host)?;
        // Whoever names an s3:// place wants an account.
        let account = runtime.block_on(Account::open(Cloud::Aws))?;
        let account = account.ok_or(AccountError::Region)?;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .read_timeout(PATIENCE)
            .build();
        // Attempts are counted here, where it is known what has come already.
        let config = aws_sdk_s3::config::Builder::from(&account.sdk)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Ok(Self(Arc::new(Shared {
            client: Client::from_conf(config),
            throttle: Throttle::new(),
            runtime: Some(runtime),
        })))
    }

    fn client(&self) -> &Client {
        &self.0.client
    }

    /// Runs a call to its end.
    fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        let runtime = self.0.runtime.as_ref().expect("it is there until the drop");
        runtime.block_on(call)
    }

    /// Makes calls until one goes well, will not, or [`ATTEMPTS`] have not.
    fn persist<T, C: Future<Output = Result<T, Stop>>>(
        &self,
        action: &'static str,
        url: &str,
        call: impl Fn() -> C,
    ) -> Result<T, ObjectError> {
        let mut in_vain = 0;
        loop {
            let ticket = self.0.throttle.enter();
            let why = match self.wait(call()) {
                Ok(value) => {
                    ticket.well();
                    return Ok(value);
                }
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Busy(why)) => {
                    ticket.busy();
                    why
                }
                Err(Stop::Again(why)) => {
                    drop(ticket);
                    why
                }
            };
            in_vain += 1;
            if in_vain == ATTEMPTS {
                let url = url.to_owned();
                return Err(ObjectError::Away { action, url, why });
            }
            pause(in_vain);
        }
    }

    /// What is under `prefix`, by name; nothing is an error.
    ///
    /// # Errors
    /// It cannot be listed, or there is nothing.
    pub fn list(&self, prefix: &Prefix) -> Result<Vec<Listed>, ObjectError> {
        let all = self.list_if_any(prefix)?;
        if all.is_empty() {
            let url = prefix.to_string();
            return Err(ObjectError::Absent { url });
        }
        Ok(all)
    }

    /// The same where nothing is as good.
    fn list_if_any(&self, prefix: &Prefix) -> Result<Vec<Listed>, ObjectError> {
        const ACTION: &str = "s3:ListBucket";
        let (url, start) = (prefix.to_string(), prefix.key(""));
        let mut all = Vec::new();
        let mut token = None;
        loop {
            let page = self.persist(ACTION, &url, || {
                let call = (self.client().list_objects_v2())
                    .bucket(&prefix.bucket)
                    .prefix(&start)
                    .set_continuation_token(token.clone());
                let url = url.clone();
                async move { call.send().await.map_err(|error| stop(&error, ACTION, url)) }
            })?;
            for object in page.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(&start));
                let size = object.size().and_then(|size| u64::try_from(size).ok());
                if let (Some(name), Some(size)) = (name.filter(|name| !name.is_empty()), size) {
                    all.push(Listed {
                        name: name.to_owned(),
                        size,
                        etag: object.e_tag().unwrap_or_default().to_owned(),
                    });
                }
            }
            if all.len() > MOST {
                let why = format!("it holds more than {MOST} objects");
                return Err(ObjectError::Answer { url, why });
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(all);
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Where this is dropped may be a place that must not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What an error of the SDK means to whoever asked.
fn stop<E, R>(error: &SdkError<E, R>, action: &'static str, url: String) -> Stop
where
    SdkError<E, R>: std::error::Error + 'static,
    E: ProvideErrorMetadata,
    R: HasStatus,
{
    let why = told(error);
    let Some(status) = error.raw_response().map(HasStatus::code) else {
        return Stop::Again(why);
    };
    let code = error.code().unwrap_or_default();
    match (status, code) {
        // Fresh credentials are asked for by the next attempt.
        (_, "ExpiredToken" | "RequestTimeTooSkewed" | "RequestTimeout" | "InternalError") => {
            Stop::Again(why)
        }
        (_, "SlowDown" | "ServiceUnavailable" | "ThrottlingException") | (429 | 503, _) => {
            Stop::Busy(why)
        }
        (404, _) => Stop::Failed(ObjectError::Absent { url }),
        (401 | 403, _) => Stop::Failed(ObjectError::Denied { action, url, why }),
        (412, _) => Stop::Failed(ObjectError::Changed { url }),
        (408 | 500.., _) => Stop::Again(why),
        _ => Stop::Failed(ObjectError::Answer { url, why }),
    }
}

/// Something with an HTTP status.
trait HasStatus {
    fn code(&self) -> u16;
}

impl HasStatus for aws_sdk_s3::config::http::HttpResponse {
    fn code(&self) -> u16 {
        self.status().as_u16()
    }
}

/// Waits before the next attempt: longer the more were in vain, and not all threads alike.
fn pause(in_vain: u32) {
    let most = 100 * 2_u64.pow(in_vain.min(ATTEMPTS));
    let mut random = [0; 8];
    // Without randomness all wait as long: worse, and no reason to fail.
    getrandom::fill(&mut random).ok();
    let part = u64::from_le_bytes(random) % (most / 2);
    #[expect(
        clippy::disallowed_methods,
        reason = "objects are fetched by threads of their own"
    )]
    std::thread::sleep(Duration::from_millis(most / 2 + part));
}

/// SHA-256 in hexadecimal digits.
fn digest(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_bucket_and_what_keys_begin_with() {
        let parse = |text: &str| text.parse::<Prefix>();
        let place = parse("bucket/models/tiny/").unwrap();
        assert_eq!(place.to_string(), "s3://bucket/models/tiny");
        assert_eq!(place.key("config.json"), "models/tiny/config.json");
        assert_eq!(place.name(), "tiny");
        assert_eq!(place.under("a").url("b"), "s3://bucket/models/tiny/a/b");
        let whole = parse("bucket").unwrap();
        assert_eq!((whole.key("a"), whole.name()), ("a".to_owned(), "bucket"));
        assert_eq!(whole.to_string(), "s3://bucket");
        for wrong in ["", "b", "/a", "buck et/a", "bucket/a//b", "bucket/../b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
