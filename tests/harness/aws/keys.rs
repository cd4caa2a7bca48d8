//! The keys of an account: who may ask, until when, and whether a request was signed now. Signatures
//! themselves are moto's to check.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::clock::Clock;
use super::front::Asked;
use super::refusal::Refusal;

/// How far the time of a signature may be off.
const SKEW_SECONDS: i64 = 300;

/// A key that an account has given out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// `AKIA..`, or `ASIA..` for one that expires.
    pub id: String,
    /// What it signs with.
    pub secret: String,
    /// What must come with it, if it expires.
    pub token: Option<String>,
    /// When it expires.
    pub expires: Option<Timestamp>,
}

/// All keys of an account, and what nobody may do. Cloning shares them.
#[derive(Clone, Default, Debug)]
pub struct Keys {
    /// What time it is for whoever checks.
    pub clock: Clock,
    ledger: Arc<Mutex<Ledger>>,
}

#[derive(Default, Debug)]
struct Ledger {
    keys: HashMap<String, Key>,
    denied: BTreeSet<String>,
    /// What alone is allowed, as IAM calls it; `None` for everything.
    allowed: Option<BTreeSet<String>>,
    given: u32,
}

impl Keys {
    /// Gives out a key that does not expire.
    pub fn issue(&self) -> Key {
        self.issued("AKIA", None)
    }

    /// Gives out a key that expires so many seconds from now.
    pub fn issue_for(&self, seconds: i64) -> Key {
        let expires = self.clock.now() + jiff::SignedDuration::from_secs(seconds);
        self.issued("ASIA", Some(expires))
    }

    fn issued(&self, kind: &str, expires: Option<Timestamp>) -> Key {
        let mut ledger = self.ledger();
        ledger.given += 1;
        let number = ledger.given;
        let key = Key {
            id: format!("{kind}{number:016}"),
            secret: format!("secret-{number}"),
            token: expires.map(|_| format!("token-{number}")),
            expires,
        };
        ledger.keys.insert(key.id.clone(), key.clone());
        key
    }

    /// Takes a key for one of its own.
    pub fn adopt(&self, key: Key) {
        self.ledger().keys.insert(key.id.clone(), key);
    }

    /// Takes back all keys that expire: whoever still uses one is told that it has.
    pub fn expire(&self) {
        let now = self.clock.now();
        for key in self.ledger().keys.values_mut() {
            key.expires = key.expires.map(|expires| expires.min(now));
        }
    }

    /// From now on nobody may do `action`, such as `PutMetricData`.
    pub fn deny(&self, action: &str) {
        self.ledger().denied.insert(action.to_owned());
    }

    /// From now on it is allowed again.
    pub fn allow(&self, action: &str) {
        self.ledger().denied.remove(action);
    }

    /// From now on nothing but these is allowed: `autoscaling:SetInstanceHealth`, ..
    pub fn allow_only(&self, actions: BTreeSet<String>) {
        self.ledger().allowed = Some(actions);
    }

    /// Whether a request may be answered.
    ///
    /// # Errors
    /// It is not signed, with a key that is unknown or has expired, at another time, or nobody may.
    pub fn check(&self, asked: &Asked) -> Result<(), Refusal> {
        let forbidden = |code, message: &str| Err(Refusal::new(403, code, message));
        let Some(id) = asked.header("authorization").and_then(access_key) else {
            return forbidden(
                "MissingAuthenticationToken",
                "Request is missing Authentication Token",
            );
        };
        let ledger = self.ledger();
        let Some(key) = ledger.keys.get(id) else {
            return forbidden(
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
            );
        };
        let now = self.clock.now();
        if key.expires.is_some_and(|expires| expires <= now) {
            return forbidden(
                "ExpiredToken",
                "The security token included in the request is expired",
            );
        }
        if asked.header("x-amz-security-token") != key.token.as_deref() {
            return forbidden(
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
            );
        }
        let signed = asked.header("x-amz-date").and_then(basic_time);
        let off = signed.map(|signed| (now.as_second() - signed.as_second()).abs());
        if off.is_none_or(|off| off > SKEW_SECONDS) {
            let message = format!("Signature expired: {signed:?} is not near {now}");
            return forbidden("RequestTimeTooSkewed", &message);
        }
        let action = asked.action();
        let service = asked.header("authorization").and_then(service);
        let full = format!("{}:{action}", service.unwrap_or_default());
        let allowed = ledger.allowed.as_ref();
        if ledger.denied.contains(&action) || allowed.is_some_and(|all| !all.contains(&full)) {
            let message = format!("User is not authorized to perform: {action}");
            return forbidden("AccessDenied", &message);
        }
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key's id in `AWS4-HMAC-SHA256 Credential=ID/20261124/us-west-2/..`.
fn access_key(authorization: &str) -> Option<&str> {
    let (_, credential) = authorization.split_once("Credential=")?;
    Some(credential.split_once('/')?.0)
}

/// The service in `.. Credential=ID/20261124/us-west-2/SERVICE/aws4_request, ..`, as IAM calls it.
fn service(authorization: &str) -> Option<&str> {
    let (_, credential) = authorization.split_once("Credential=")?;
    match credential.split('/').nth(3)? {
        "monitoring" => Some("cloudwatch"),
        other => Some(other),
    }
}

/// `20261124T180000Z`.
fn basic_time(text: &str) -> Option<Timestamp> {
    let time = DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}
