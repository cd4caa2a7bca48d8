//! Who may ask, how much, and what it came to: keys, quotas, the ledger.
//!
//! A request comes with a key, which makes a [`Caller`]: let in once, until its last clone is dropped. What
//! it may come to is taken as a [`Bill`] before it runs; dropping the bill gives back what was not used.

pub mod keys;
pub mod ledger;
pub mod money;
pub mod new;
pub mod quota;
pub mod redact;
pub mod usage;

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;

use self::keys::{ANYONE, Key, Keys, KeysError, MOST};
use self::ledger::{Ledger, Record, Sums};
pub use self::money::Money;
use self::quota::{Account, Moment, Taken};
pub use self::quota::{Over, Room};
pub use self::usage::{Prices, Tally, Tokens, Usage};
use crate::config::{Isolation, Live, Resolved};
use crate::metrics::Metrics;
use crate::stamp::{LOOK, Watched};

/// Accounts of keys that are no more are forgotten beyond so many.
const ACCOUNTS: usize = 4 * MOST;

/// The farthest back among its key's requests that a request may put itself.
const BACK: i32 = 1_000_000;

/// Why the door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The keys are no good.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The file of keys cannot be read.
    #[error("cannot read the keys in {path}: {why}")]
    File {
        /// The setting keys-file.
        path: PathBuf,
        /// What the host said.
        why: io::Error,
    },
    /// The file of keys holds something else.
    #[error("{path}: {why}")]
    InFile {
        /// The setting keys-file.
        path: PathBuf,
        /// What is wrong with it.
        why: KeysError,
    },
    /// The ledger cannot be read or written.
    #[error("cannot use the ledger {path}: {why}; name another file with --ledger")]
    Ledger {
        /// The setting ledger.
        path: PathBuf,
        /// What the host said.
        why: io::Error,
    },
}

/// Why a request is not let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It came without a key.
    Missing,
    /// Its key is none of ours.
    Unknown,
    /// Its key has ended.
    Expired(Timestamp),
    /// Its key has used up what it may.
    Over(Over),
}

impl Refusal {
    /// Its name in metrics and the audit log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Expired(_) => "expired",
            Self::Over(over) => over.reason(),
        }
    }
}

/// What the door goes by now. A request keeps what it came in under.
#[derive(Debug)]
struct Terms {
    /// `None` lets in anybody.
    keys: Option<Keys>,
    prices: Prices,
    isolation: Isolation,
    /// Whether what looks like a person's own is kept out of logs and ledger.
    redact: bool,
}

/// The door: who is let in, and what each has used. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Access(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    terms: RwLock<Arc<Terms>>,
    /// By the id of the key.
    accounts: Mutex<BTreeMap<String, Arc<Account>>>,
    anyone: Arc<Key>,
    applying: Mutex<()>,
    ledger: Option<Ledger>,
    metrics: Metrics,
}

impl Access {
    /// The door that `settings` describe; what was used before is read from the ledger.
    ///
    /// # Errors
    /// The keys or the ledger cannot be used.
    pub fn open(settings: &Resolved, metrics: Metrics) -> Result<Self, AccessError> {
        let keys = keys(settings)?;
        let (ledger, sums) = match &settings.ledger {
            None => (None, Sums::default()),
            Some(path) => {
                let opened = Ledger::open(path, settings.ledger_size.0);
                let opened = opened.map_err(|why| AccessError::Ledger {
                    path: path.clone(),
                    why,
                });
                let (ledger, sums) = opened?;
                (Some(ledger), sums)
            }
        };
        let account = |key: &str| {
            (
                key.to_owned(),
                Arc::new(Account::new(sums.of(key), Instant::now())),
            )
        };
        let accounts = sums.keys().map(account).collect();
        Ok(Self(Arc::new(Shared {
            terms: RwLock::new(Arc::new(Terms::new(keys, settings))),
            accounts: Mutex::new(accounts),
            anyone: Arc::new(Key::anyone()),
            applying: Mutex::default(),
            ledger,
            metrics,
        })))
    }

    /// The settings have changed: goes by their keys and prices from now on. Requests that run, and what
    /// was used, stay as they are. Keys that were taken away altogether stay: a server that had keys is
    /// not opened to all while it runs.
    ///
    /// # Errors
    /// The new keys are no good: then nothing changes.
    pub fn apply(&self, settings: &Live) -> Result<(), AccessError> {
        // One at a time, so that the latest settings are the last that are applied.
        let _one = (self.0.applying.lock()).unwrap_or_else(PoisonError::into_inner);
        let settings = &*settings.now();
        let mut new = keys(settings)?;
        let old = self.terms();
        if new.is_none() && old.keys.is_some() {
            tracing::warn!("the setting of keys was taken away: the keys stay until a restart");
            new.clone_from(&old.keys);
        }
        if new != old.keys {
            let count = new.as_ref().map_or(0, |keys| keys.iter().count());
            tracing::info!(audit = "keys", count, "the keys have changed");
        }
        let terms = Arc::new(Terms::new(new, settings));
        self.forget(&terms);
        *(self.0.terms.write()).unwrap_or_else(PoisonError::into_inner) = terms;
        Ok(())
    }

    /// Reads the file of keys again when it changes, for ever.
    pub async fn follow(self, settings: Live) {
        let mut watched = Watched::default();
        loop {
            let file = settings.now().keys_file.clone();
            if watched.changed(file.into_iter().collect()).await {
                let (access, settings) = (self.clone(), settings.clone());
                // It reads a file.
                let applied = tokio::task::spawn_blocking(move || access.apply(&settings)).await;
                if let Ok(Err(why)) = applied {
                    tracing::error!(audit = "keys", "{why}; the keys of before stay");
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether only those who have a key are let in.
    pub fn has_keys(&self) -> bool {
        self.terms().keys.is_some()
    }

    /// Whether a key has a budget that a restart would begin anew.
    pub fn forgets_budgets(&self) -> bool {
        let terms = self.terms();
        let budget = |key: &Arc<Key>| {
            let allowance = &key.allowance;
            allowance
                .budget_per_day
                .or(allowance.budget_per_month)
                .is_some()
        };
        self.0.ledger.is_none() && terms.keys.iter().flat_map(Keys::iter).any(budget)
    }

    fn terms(&self) -> Arc<Terms> {
        let terms = self.0.terms.read();
        terms.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Account>>> {
        // Every change is whole, whatever panics.
        (self.0.accounts.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    fn account(&self, id: &str) -> Arc<Account> {
        let mut accounts = self.accounts();
        match accounts.get(id) {
            Some(account) => Arc::clone(account),
            None => {
                let account = Arc::new(Account::new(Usage::new(Timestamp::now()), Instant::now()));
                accounts.insert(id.to_owned(), Arc::clone(&account));
                account
            }
        }
    }

    /// Accounts without a key are forgotten when there are far too many.
    fn forget(&self, terms: &Terms) {
        let mut accounts = self.accounts();
        if accounts.len() <= ACCOUNTS {
            return;
        }
        let known = |id: &str| {
            let mut keys = terms.keys.iter().flat_map(Keys::iter);
            id == ANYONE || keys.any(|key| key.id == id)
        };
        accounts.retain(|id, _| known(id));
    }

    /// Whose `secret` this is.
    ///
    /// # Errors
    /// Nobody's, any more perhaps.
    pub fn know(&self, secret: Option<&[u8]>) -> Result<Caller, Refusal> {
        let terms = self.terms();
        let key = match &terms.keys {
            None => Ok(&self.0.anyone),
            Some(keys) => match secret {
                None => Err(Refusal::Missing),
                Some(secret) => keys.find(secret).ok_or(Refusal::Unknown),
            },
        };
        let key = key.inspect_err(|refusal| {
            self.0.metrics.key_refused("", "", refusal.reason());
        })?;
        let caller = Caller(Arc::new(Visit {
            access: self.clone(),
            account: self.account(&key.id),
            key: Arc::clone(key),
            terms: Arc::clone(&terms),
            counted: false,
        }));
        match key.expires {
            Some(end) if end <= Timestamp::now() => Err(caller.refused(Refusal::Expired(end))),
            _ => Ok(caller),
        }
    }

    /// What every key has used and may use, for whoever runs the server.
    pub fn report(&self) -> Report {
        let now = Moment::now();
        let terms = self.terms();
        let keys = terms.keys.iter().flat_map(Keys::iter);
        let keys = keys
            .map(|key| (key.id.as_str(), key))
            .collect::<BTreeMap<_, _>>();
        let account = |(id, account): (&String, &Arc<Account>)| {
            let (usage, running) = account.standing(now);
            let key = keys.get(id.as_str());
            KeyReport {
                id: id.clone(),
                project: key.map(|key| key.project.clone()),
                running,
                budget_per_day: key.and_then(|key| key.allowance.budget_per_day),
                budget_per_month: key.and_then(|key| key.allowance.budget_per_month),
                usage,
            }
        };
        // Keys that nobody has used yet are told too.
        for id in keys.keys() {
            self.account(id);
        }
        let keys: Vec<KeyReport> = self.accounts().iter().map(account).collect();
        let mut projects = BTreeMap::new();
        for KeyReport { project, usage, .. } in &keys {
            let project = project.as_deref().unwrap_or_default().to_owned();
            *projects.entry(project).or_insert(Usage::new(now.wall)) += *usage;
        }
        Report {
            time: now.wall,
            projects,
            keys,
        }
    }

    /// Writes what the ledger does not have yet, for two seconds at most.
    pub fn flush(&self) {
        if let Some(ledger) = &self.0.ledger {
            ledger.flush();
        }
    }
}

impl Terms {
    fn new(keys: Option<Keys>, settings: &Resolved) -> Self {
        let input = settings.price_input;
        Self {
            keys,
            prices: Prices {
                input,
                cached: settings.price_cached.unwrap_or(input),
                output: settings.price_output,
            },
            isolation: settings.isolate_cache,
            redact: settings.redact_audit,
        }
    }
}

/// The keys that `settings` have: in themselves, or in a file.
fn keys(settings: &Resolved) -> Result<Option<Keys>, AccessError> {
    match (&settings.keys, &settings.keys_file) {
        (Some(lines), _) => Ok(Some(Keys::parse(lines.reveal())?)),
        (None, Some(path)) => from_file(path).map(Some),
        (None, None) => Ok(None),
    }
}

fn from_file(path: &Path) -> Result<Keys, AccessError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|why| AccessError::File {
        path: path.to_owned(),
        why,
    })?;
    Keys::parse(&text).map_err(|why| AccessError::InFile {
        path: path.to_owned(),
        why,
    })
}

/// What [`Access::report`] tells.
#[derive(Clone, Serialize, Debug)]
pub struct Report {
    time: Timestamp,
    /// By name; those of keys that are no more have none.
    projects: BTreeMap<String, Usage>,
    keys: Vec<KeyReport>,
}

/// What one key has used.
#[derive(Clone, Serialize, Debug)]
struct KeyReport {
    id: String,
    /// Null for a key that is no more.
    project: Option<String>,
    running: u32,
    budget_per_day: Option<Money>,
    budget_per_month: Option<Money>,
    usage: Usage,
}

/// Whoever asks: a key of ours, or anyone where there are none. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Visit>);

#[derive(Debug)]
struct Visit {
    access: Access,
    key: Arc<Key>,
    account: Arc<Account>,
    terms: Arc<Terms>,
    /// Whether it counts as a request that runs.
    counted: bool,
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.counted {
            self.told_running(self.account.leave());
        }
    }
}

impl Visit {
    fn metrics(&self) -> &Metrics {
        &self.access.0.metrics
    }

    fn told_running(&self, running: u32) {
        self.metrics()
            .key_running(&self.key.id, &self.key.project, running);
    }
}

impl Caller {
    /// The id of the key.
    pub fn id(&self) -> &str {
        &self.0.key.id
    }

    /// Whether it may use the model of that name.
    pub fn may_use(&self, model: &str) -> bool {
        self.0.key.may_use(model)
    }

    /// Counts it as a request, until the last clone is dropped.
    ///
    /// # Errors
    /// It has too many already.
    pub fn enter(self) -> Result<Self, Refusal> {
        let now = Moment::now();
        let visit = &self.0;
        match visit.account.enter(&visit.key.allowance, now) {
            Ok(()) => {
                visit.told_running(visit.account.standing(now).1);
                Ok(Self(Arc::new(Visit {
                    access: visit.access.clone(),
                    key: Arc::clone(&visit.key),
                    account: Arc::clone(&visit.account),
                    terms: Arc::clone(&visit.terms),
                    counted: true,
                })))
            }
            Err(over) => Err(self.refused(Refusal::Over(over))),
        }
    }

    fn refused(&self, refusal: Refusal) -> Refusal {
        let Visit { key, .. } = &*self.0;
        self.0
            .metrics()
            .key_refused(&key.id, &key.project, refusal.reason());
        refusal
    }

    /// What is left by the minute: of requests, and of tokens.
    pub fn rooms(&self) -> [Option<Room>; 2] {
        self.0.account.rooms(&self.0.key.allowance, Moment::now())
    }

    /// The priority of a request that asks for `asked`: its key's, and within it a request can only put
    /// itself back. Where there are no keys, what it asks for.
    pub fn priority(&self, asked: i32) -> i32 {
        match &self.0.terms.keys {
            None => asked,
            Some(_) => self.0.key.priority * (BACK + 1) + asked.clamp(0, BACK),
        }
    }

    /// Hashes what keeps its cached prefixes apart from those of others. Returns whether anything does.
    pub fn isolate(&self, hasher: &mut impl Hasher) -> bool {
        match self.0.terms.isolation {
            Isolation::None => return false,
            Isolation::Project => self.0.key.project.hash(hasher),
            Isolation::Key => self.0.key.id.hash(hasher),
        }
        true
    }

    /// Takes what a request may come to: the tokens of its prompts and `most` of its answers.
    ///
    /// # Errors
    /// It is more than there is.
    pub fn bill(&self, request: Request, prompt: u64, most: u64) -> Result<Bill, Refusal> {
        let visit = &self.0;
        let cost = visit.terms.prices.at_most(prompt, most);
        let taken = (visit.account).take(&visit.key.allowance, prompt, most, cost, Moment::now());
        let taken = taken.map_err(|over| self.refused(Refusal::Over(over)))?;
        Ok(Bill {
            caller: self.clone(),
            request,
            taken: Some(taken),
            first: None,
        })
    }
}

/// What the ledger tells of a request beside its tokens.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// When it arrived.
    pub arrived: Instant,
}

/// What was taken for a request. Dropping it gives everything back.
#[derive(Debug)]
pub struct Bill {
    caller: Caller,
    request: Request,
    taken: Option<Taken>,
    /// When its first token was produced.
    first: Option<Instant>,
}

impl Bill {
    /// A token was produced.
    pub fn produced(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// The request has ended, and came to this.
    pub fn settle(mut self, tokens: Tokens, finish: &str) {
        let Some(taken) = self.taken.take() else {
            return;
        };
        let (visit, now) = (&self.caller.0, Moment::now());
        let tally = Tally::of(tokens, visit.terms.prices.cost(tokens));
        visit.account.settle(taken, Some(tally), now);
        let Key { id, project, .. } = &*visit.key;
        visit.metrics().key_used(id, project, &tally);
        let Some(ledger) = &visit.access.0.ledger else {
            return;
        };
        let since = |at: Instant| at.duration_since(self.request.arrived).as_secs_f64();
        let written = ledger.write(Record {
            time: now.wall,
            key: id.clone(),
            project: project.clone(),
            model: self.request.model.clone(),
            request: match visit.terms.redact {
                true => redact::mask(&self.request.id).into_owned(),
                false => self.request.id.clone(),
            },
            input_tokens: tokens.input,
            cached_tokens: tokens.cached,
            output_tokens: tokens.output,
            cost: tally.cost,
            seconds: since(now.instant),
            first_token_seconds: self.first.map(since),
            finish: finish.to_owned(),
        });
        if !written {
            visit.metrics().ledger_lost();
        }
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.caller.0.account.settle(taken, None, Moment::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use super::keys::PRIORITY;
    use super::*;
    use crate::config::{Layer, Raw};

    /// The settings that the environment would have with these variables.
    fn settings(variables: &[(&str, &str)]) -> Resolved {
        let layer = Layer::environment(|name| {
            let (_, text) = variables.iter().find(|(other, _)| *other == name)?;
            Some((*text).to_owned())
        });
        Resolved::early(&Raw::new(&[&layer])).unwrap()
    }

    fn keys(lines: &[&str]) -> Resolved {
        settings(&[("APPLIANCE_KEYS", &lines.join("\n"))])
    }

    /// The line of a key whose secret is its id.
    fn line(id: &str, more: &str) -> String {
        let line = Key::new(id, id).to_string();
        format!("{}{more}}}", line.strip_suffix('}').unwrap())
    }

    fn open(settings: Resolved) -> (Access, Live) {
        let access = Access::open(&settings, Metrics::new()).unwrap();
        (access, Live::new(settings))
    }

    fn request() -> Request {
        Request {
            id: "r".to_owned(),
            model: "m".to_owned(),
            arrived: Instant::now(),
        }
    }

    #[test]
    fn without_keys_anybody_is_let_in_and_limited_by_nothing() {
        let (access, _) = open(settings(&[]));
        let caller = access.know(None).unwrap().enter().unwrap();
        assert_eq!((caller.id(), caller.priority(-7)), (ANYONE, -7));
        assert_eq!(caller.rooms(), [None, None]);
        caller.bill(request(), 1 << 40, 1 << 40).unwrap();
    }

    #[test]
    fn a_key_goes_before_others_and_a_request_only_behind() {
        let (first, last) = (
            line("first", ",\"priority\":-1"),
            line("last", ",\"priority\":1"),
        );
        let (access, _) = open(keys(&[&first, &last, &line("plain", "")]));
        let priority = |id: &str, asked| access.know(Some(id.as_bytes())).unwrap().priority(asked);
        assert_eq!(priority("plain", 0), 0);
        assert_eq!(priority("plain", i32::MIN), 0);
        assert!(priority("plain", i32::MAX) < priority("last", 0));
        assert!(priority("first", i32::MAX) < priority("plain", i32::MIN));
        let edges = [-PRIORITY, PRIORITY].map(|priority| priority.checked_mul(BACK + 1));
        assert!(edges[0].is_some() && edges[1].unwrap().checked_add(BACK).is_some());
    }

    #[test]
    fn a_server_that_had_keys_is_not_opened_while_it_runs() {
        let (access, live) = open(keys(&[&line("a", "")]));
        live.replace(Arc::new(settings(&[])));
        access.apply(&live).unwrap();
        assert_eq!(access.know(None).unwrap_err(), Refusal::Missing);
        access.know(Some(b"a")).unwrap();
        live.replace(Arc::new(keys(&[&line("b", "")])));
        access.apply(&live).unwrap();
        assert_eq!(access.know(Some(b"a")).unwrap_err(), Refusal::Unknown);
    }

    #[test]
    fn what_runs_and_what_was_used_outlive_a_change_of_the_keys() {
        let (access, live) = open(keys(&[&line("a", ",\"concurrent\":1")]));
        let know = || access.know(Some(b"a")).unwrap();
        let running = know().enter().unwrap();
        let bill = running.bill(request(), 10, 10).unwrap();
        live.replace(Arc::new(keys(&[&line(
            "a",
            ",\"concurrent\":1,\"project\":\"q\"",
        )])));
        access.apply(&live).unwrap();
        know().enter().unwrap_err();
        let tokens = Tokens {
            input: 10,
            cached: 0,
            output: 5,
        };
        bill.settle(tokens, "stop");
        drop(running);
        know().enter().unwrap();
        let report = serde_json::to_value(access.report()).unwrap();
        let a = &report["keys"][0];
        assert_eq!(
            (&a["project"], &a["usage"]["day"]["output_tokens"]),
            (&"q".into(), &5.into())
        );
    }

    #[test]
    fn caches_are_kept_apart_as_far_as_asked() {
        let lines = [
            line("a", ",\"project\":\"p\""),
            line("b", ",\"project\":\"p\""),
        ]
        .join("\n");
        let told = |isolation: &str| {
            let (access, _) = open(settings(&[
                ("APPLIANCE_KEYS", &lines),
                ("APPLIANCE_ISOLATE_CACHE", isolation),
            ]));
            [&b"a"[..], b"b"].map(|id| {
                let mut hasher = DefaultHasher::new();
                let apart = access.know(Some(id)).unwrap().isolate(&mut hasher);
                apart.then(|| hasher.finish())
            })
        };
        assert_eq!(told("none"), [None, None]);
        let [a, b] = told("project");
        assert!(a.is_some() && a == b);
        let [a, b] = told("key");
        assert!(a.is_some() && a != b);
    }
}
