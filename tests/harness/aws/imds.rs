//! The instance metadata service, as strict as the real one: version 2 only, tokens that expire, no
//! answer to who was forwarded, and a hop limit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::front::{Asked, Front, Manner, Reply};
use super::keys::Keys;

/// Where the real one is.
pub const REAL: ([u8; 4], u16) = ([169, 254, 169, 254], 80);

/// How long a token may last, in seconds.
const LIFETIMES: std::ops::RangeInclusive<u64> = 1..=21600;

const META: &str = "meta-data";
const ROLE: &str = "appliance-role";

/// A fake metadata service of one instance.
#[derive(Debug)]
pub struct Imds {
    front: Front,
    data: Data,
    keys: Keys,
}

/// What the service knows. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Data(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    /// By path below `/latest/`.
    values: BTreeMap<String, String>,
    tokens: HashMap<String, Instant>,
    given: u64,
    hops: u32,
    /// How long the credentials of the role last from when they are asked for; `None` for no role.
    role: Option<i64>,
}

impl Imds {
    /// The service of the instance `i-0123456789abcdef0`, an `inf2.xlarge` in `us-west-2`, on a free
    /// port.
    pub fn start(keys: &Keys) -> Self {
        let data = Data::new();
        let answering = (data.clone(), keys.clone());
        let front = Front::start(keys.clock.clone(), move |asked| {
            answering.0.answer(asked, &answering.1)
        });
        Self {
            front,
            data,
            keys: keys.clone(),
        }
    }

    /// The same at the address of the real one, which a network namespace of the test's own must have.
    ///
    /// # Errors
    /// The host has no such address, or does not let us listen on it.
    pub fn start_at_real_address(keys: &Keys) -> io::Result<Self> {
        let data = Data::new();
        let answering = (data.clone(), keys.clone());
        let front = Front::start_at(SocketAddr::from(REAL), keys.clock.clone(), move |asked| {
            answering.0.answer(asked, &answering.1)
        })?;
        Ok(Self {
            front,
            data,
            keys: keys.clone(),
        })
    }

    /// Where it is: for `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn url(&self) -> String {
        self.front.url()
    }

    /// Behaves like this from now on.
    pub fn behave(&self, manner: Manner) {
        self.front.behave(manner);
    }

    /// Answers the next `count` requests with an error, then goes on as before.
    pub fn fail_next(&self, count: usize, status: u16) {
        self.front.fail_next(count, status, "Throttled");
    }

    /// What was asked so far: `PUT /latest/api/token`, `GET /latest/meta-data/..`.
    pub fn asked(&self) -> Vec<String> {
        self.front.asked()
    }

    /// How often a path below `/latest/` was read.
    pub fn reads(&self, path: &str) -> usize {
        self.front.count(&format!("GET /latest/{path}"))
    }

    /// How many tokens were asked for.
    pub fn tokens(&self) -> usize {
        self.front.count("PUT /latest/api/token")
    }

    /// Sets the value at a path below `/latest/meta-data/`.
    pub fn set(&self, path: &str, value: &str) {
        self.data.set(path, value);
    }

    /// Takes away what is at a path below `/latest/meta-data/`.
    pub fn remove(&self, path: &str) {
        self.data.remove(path);
    }

    /// Tags the instance.
    pub fn tag(&self, name: &str, value: &str) {
        assert!(
            !name.contains(['/', ' ']),
            "EC2 does not launch an instance whose metadata is to show the tag {name:?}"
        );
        self.set(&format!("tags/instance/{name}"), value);
    }

    /// Sets the user data.
    pub fn user_data(&self, text: &str) {
        self.data
            .known()
            .values
            .insert("user-data".into(), text.into());
    }

    /// Gives notice that the Spot instance is taken away in so many seconds.
    pub fn spot_notice(&self, seconds: i64) {
        let time = self.keys.clock.after(seconds);
        let notice = json!({"action": "terminate", "time": time}).to_string();
        self.set("spot/instance-action", &notice);
        self.set("spot/termination-time", &time);
    }

    /// Recommends a rebalance.
    pub fn rebalance(&self) {
        let notice = json!({"noticeTime": self.keys.clock.after(0)}).to_string();
        self.set("events/recommendations/rebalance", &notice);
    }

    /// Sets the state that Auto Scaling wants the instance in: `InService`, `Terminated`, ..
    pub fn target_state(&self, state: &str) {
        self.data.target_state(state);
    }

    /// Gives the instance a role whose credentials last so many seconds from when they are asked for;
    /// `None` takes it away.
    pub fn role(&self, seconds: Option<i64>) {
        self.data.known().role = seconds;
    }

    /// Sets over how many hops a token travels: 1 unless told otherwise.
    pub fn hop_limit(&self, hops: u32) {
        self.data.known().hops = hops;
    }

    /// Forgets all tokens, as if their time were over.
    pub fn expire_tokens(&self) {
        self.data.known().tokens.clear();
    }

    /// What the service knows.
    pub(super) fn data(&self) -> Data {
        self.data.clone()
    }
}

impl Data {
    fn new() -> Self {
        let instance = super::INSTANCE;
        let identity = json!({
            "accountId": "123456789012",
            "architecture": "x86_64",
            "availabilityZone": "us-west-2a",
            "imageId": "ami-0123456789abcdef0",
            "instanceId": instance,
            "instanceType": "inf2.xlarge",
            "privateIp": "10.0.0.5",
            "region": super::REGION,
            "version": "2017-09-30",
        });
        let values = [
            ("dynamic/instance-identity/document", identity.to_string()),
            ("meta-data/ami-id", "ami-0123456789abcdef0".into()),
            (
                "meta-data/hostname",
                "ip-10-0-0-5.us-west-2.compute.internal".into(),
            ),
            ("meta-data/instance-id", instance.into()),
            ("meta-data/instance-life-cycle", "on-demand".into()),
            ("meta-data/instance-type", "inf2.xlarge".into()),
            ("meta-data/local-ipv4", "10.0.0.5".into()),
            ("meta-data/placement/availability-zone", "us-west-2a".into()),
            ("meta-data/placement/region", super::REGION.into()),
            ("meta-data/services/domain", "amazonaws.com".into()),
        ];
        let values = values.map(|(path, value)| (path.to_owned(), value));
        Self(Arc::new(Mutex::new(Known {
            values: values.into(),
            tokens: HashMap::new(),
            given: 0,
            hops: 1,
            role: Some(6 * 3600),
        })))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, path: &str, value: &str) {
        let path = format!("{META}/{path}");
        self.known().values.insert(path, value.to_owned());
    }

    /// The value at a path below `/latest/meta-data/`.
    pub(super) fn value(&self, path: &str) -> Option<String> {
        self.known().values.get(&format!("{META}/{path}")).cloned()
    }

    pub(super) fn remove(&self, path: &str) {
        self.known().values.remove(&format!("{META}/{path}"));
    }

    pub(super) fn target_state(&self, state: &str) {
        self.set("autoscaling/target-lifecycle-state", state);
    }

    fn answer(&self, asked: &Asked, keys: &Keys) -> Reply {
        let plain = |status, text: &str| Reply::new(status, "text/plain", text);
        let mut known = self.known();
        // Who came through a proxy is not the instance.
        if asked.header("x-forwarded-for").is_some() {
            return plain(403, "Forbidden");
        }
        if asked.path == "/latest/api/token" {
            return match asked.method.as_str() {
                "PUT" => known.token(asked),
                _ => plain(405, "Method Not Allowed"),
            };
        }
        if asked.method != "GET" {
            return plain(405, "Method Not Allowed");
        }
        let token = asked.header("x-aws-ec2-metadata-token");
        let lasts = token.and_then(|token| known.tokens.get(token));
        if lasts.is_none_or(|until| *until <= Instant::now()) {
            return plain(401, "Unauthorized");
        }
        let found = asked
            .path
            .strip_prefix("/latest")
            .and_then(|path| known.read(path.trim_matches('/'), keys));
        match found {
            Some(text) => plain(200, &text),
            None => plain(404, "Not Found"),
        }
    }
}

impl Known {
    /// Gives out a token for as long as is asked for.
    fn token(&mut self, asked: &Asked) -> Reply {
        let seconds = asked.header("x-aws-ec2-metadata-token-ttl-seconds");
        let seconds = seconds.and_then(|text| text.parse().ok());
        let Some(seconds) = seconds.filter(|seconds| LIFETIMES.contains(seconds)) else {
            return Reply::new(400, "text/plain", "Bad Request");
        };
        self.given += 1;
        let token = format!("IMDS-token-{}==", self.given);
        let until = Instant::now() + Duration::from_secs(seconds);
        self.tokens.insert(token.clone(), until);
        let mut reply = Reply::new(200, "text/plain", token)
            .header("x-aws-ec2-metadata-token-ttl-seconds", seconds);
        reply.hops = Some(self.hops);
        reply
    }

    /// The value at a path below `/latest/`, or what is in that folder.
    fn read(&self, path: &str, keys: &Keys) -> Option<String> {
        if let Some(role) = path.strip_prefix("meta-data/iam/security-credentials") {
            let lifetime = self.role?;
            return match role {
                "" => Some(ROLE.to_owned()),
                role if role.strip_prefix('/') == Some(ROLE) => Some(credentials(keys, lifetime)),
                _ => None,
            };
        }
        if let Some(value) = self.values.get(path) {
            return Some(value.clone());
        }
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let names: BTreeSet<String> = self
            .values
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix))
            .map(|rest| match rest.split_once('/') {
                Some((folder, _)) => format!("{folder}/"),
                None => rest.to_owned(),
            })
            .chain((path == META && self.role.is_some()).then(|| "iam/".to_owned()))
            .collect();
        let listing: Vec<_> = names.into_iter().collect();
        (!listing.is_empty()).then(|| listing.join("\n"))
    }
}

/// Fresh credentials of the role.
fn credentials(keys: &Keys, lifetime: i64) -> String {
    let key = keys.issue_for(lifetime);
    json!({
        "Code": "Success",
        "LastUpdated": keys.clock.after(0),
        "Type": "AWS-HMAC",
        "AccessKeyId": key.id,
        "SecretAccessKey": key.secret,
        "Token": key.token,
        "Expiration": keys.clock.after(lifetime),
    })
    .to_string()
}
