//! An AWS account that is none: its services fake the wire, and the SDK's own variables lead there.
//! What moto has, moto answers ([`Moto`]); the rest is here.

mod autoscaling;
pub mod cbor;
mod clock;
mod cloudwatch;
mod empty;
mod front;
mod imds;
mod keys;
mod moto;
pub mod namespace;
mod refusal;
mod s3;

use std::ffi::OsString;

pub use autoscaling::{Action, AutoScaling, Hook, Transition};
pub use clock::Clock;
pub use cloudwatch::{Call, CloudWatch, Datum};
pub use empty::Empty;
pub use front::{Asked, Front, Manner, Reply};
pub use imds::{Imds, REAL};
pub use keys::{Key, Keys};
pub use moto::Moto;
pub use refusal::{Refusal, refused};
pub use s3::{Fault, S3};

/// The instance that the server runs on.
pub const INSTANCE: &str = "i-0123456789abcdef0";

/// Where it is.
pub const REGION: &str = "us-west-2";

/// The Auto Scaling group that it belongs to, once it is launched.
pub const GROUP: &str = "appliance-group";

/// An account with one instance, which is in no group before [`AutoScaling::launch`].
#[derive(Debug)]
pub struct Account {
    /// Its keys and its clock.
    pub keys: Keys,
    /// The instance's metadata.
    pub imds: Imds,
    /// Its Auto Scaling.
    pub autoscaling: AutoScaling,
    /// Its CloudWatch.
    pub cloudwatch: CloudWatch,
    /// Its other services, which have nothing in them.
    pub others: Empty,
    /// A key of the instance's own; otherwise it has its role's.
    key: Option<Key>,
    /// What answers for all other services instead.
    rest: Option<String>,
}

impl Account {
    /// An account whose instance gets its credentials from its role.
    pub fn open() -> Self {
        let keys = Keys::default();
        let imds = Imds::start(&keys);
        Self::of(keys, imds)
    }

    /// The same with the metadata service at its real address: for a test in a network of its own.
    ///
    /// # Errors
    /// The host has no such address.
    pub fn open_at_real_address() -> std::io::Result<Self> {
        let keys = Keys::default();
        let imds = Imds::start_at_real_address(&keys)?;
        Ok(Self::of(keys, imds))
    }

    fn of(keys: Keys, imds: Imds) -> Self {
        Self {
            autoscaling: AutoScaling::start(&keys, &imds),
            cloudwatch: CloudWatch::start(&keys),
            others: Empty::start(&keys),
            imds,
            keys,
            key: None,
            rest: None,
        }
    }

    /// The same whose instance has a key in its environment.
    #[must_use]
    pub fn with_key(mut self) -> Self {
        self.key = Some(self.keys.issue());
        self
    }

    /// The same with a key that another has given out, such as [`Moto::user`].
    #[must_use]
    pub fn with_key_of(mut self, key: Key) -> Self {
        self.keys.adopt(key.clone());
        self.key = Some(key);
        self
    }

    /// The same with this for all services that are not faked here: the address of a moto, or of a
    /// test's own.
    #[must_use]
    pub fn with_rest(mut self, url: impl Into<String>) -> Self {
        self.rest = Some(url.into());
        self
    }

    /// The variables under which the SDK finds the account, and nothing of the developer's.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let rest = self.rest.clone().unwrap_or_else(|| self.others.url());
        let mut environment: Vec<(&'static str, OsString)> = vec![
            ("AWS_EC2_METADATA_DISABLED", "false".into()),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.imds.url().into()),
            ("AWS_ENDPOINT_URL", rest.into()),
            (
                "AWS_ENDPOINT_URL_AUTO_SCALING",
                self.autoscaling.url().into(),
            ),
            ("AWS_ENDPOINT_URL_CLOUDWATCH", self.cloudwatch.url().into()),
            ("AWS_CONFIG_FILE", "/dev/null".into()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".into()),
        ];
        if let Some(key) = &self.key {
            environment.extend([
                ("AWS_REGION", REGION.into()),
                ("AWS_ACCESS_KEY_ID", key.id.clone().into()),
                ("AWS_SECRET_ACCESS_KEY", key.secret.clone().into()),
            ]);
        }
        environment
    }
}
