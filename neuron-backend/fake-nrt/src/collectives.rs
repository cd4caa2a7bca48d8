//! Ranks that run one NEFF together: they load it together, and an execution starts when the last of
//! them asks for it. All of them are threads of this process; one NEFF on consecutive cores is one
//! group, so that several groups can live side by side.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::model::Bound;
use crate::status::{Failure, refuse};

/// What an execution came to: how long the device took.
pub(crate) type Outcome = Result<Duration, Failure>;

/// Where the group starts: the core of its first rank, and how many ranks there are.
type Key = (i64, u32);

/// Who loads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rank {
    /// The core, as the process numbers them.
    pub(crate) core: u32,
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
}

/// Groups that wait for their last rank.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    forming: Mutex<HashMap<Key, Forming>>,
    changed: Condvar,
}

/// A group whose ranks are not all there.
#[derive(Debug)]
struct Forming {
    hash: [u8; 32],
    ranks: BTreeSet<u32>,
    group: Arc<Group>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Forming>> {
        self.forming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all ranks load the NEFF of this hash. Another NEFF is waited with in vain, as
    /// on the device (aws-neuron-sdk issue 699).
    ///
    /// # Errors
    /// `TIMEOUT` after the timeout; `INVALID` if the rank waits already.
    pub(crate) fn join(
        &self,
        who: Rank,
        hash: [u8; 32],
        timeout: Option<Duration>,
    ) -> Result<Arc<Group>, Failure> {
        let Rank { core, rank, ranks } = who;
        let key = (i64::from(core) - i64::from(rank), ranks);
        let mut forming = self.lock();
        let group = forming.entry(key).or_insert_with(|| Forming {
            hash,
            ranks: BTreeSet::new(),
            group: Arc::new(Group::new(ranks)),
        });
        let joined = group.hash == hash;
        if joined && !group.ranks.insert(rank) {
            return Err(refuse!(
                INVALID,
                "rank {rank} of {ranks} loads this NEFF already"
            ));
        }
        let whole = group.ranks.len() == ranks as usize;
        let group = Arc::clone(&group.group);
        if joined && whole {
            group.open();
            forming.remove(&key);
            self.changed.notify_all();
            return Ok(group);
        }
        if !joined {
            eprintln!("fake-nrt: rank {rank} loads another NEFF than the ranks it shall run with");
        }
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if joined && group.is_open() {
                return Ok(group);
            }
            let (guard, late) = wait(&self.changed, forming, deadline);
            forming = guard;
            if late && !(joined && group.is_open()) {
                leave(&mut forming, key, &group, joined.then_some(rank));
                return Err(refuse!(
                    TIMEOUT,
                    "rank {rank} of {ranks} waits for the others to load the same NEFF"
                ));
            }
        }
    }
}

/// Takes a rank out of a group that never came to be.
fn leave(forming: &mut HashMap<Key, Forming>, key: Key, group: &Arc<Group>, rank: Option<u32>) {
    if let Some(rank) = rank
        && let Some(entry) = forming.get_mut(&key)
        && Arc::ptr_eq(&entry.group, group)
    {
        entry.ranks.remove(&rank);
        if entry.ranks.is_empty() {
            forming.remove(&key);
        }
    }
}

/// Waits for a change, until the deadline; says whether that has passed.
fn wait<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> (MutexGuard<'a, T>, bool) {
    let Some(deadline) = deadline else {
        let guard = changed.wait(guard);
        return (guard.unwrap_or_else(PoisonError::into_inner), false);
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let waited = changed.wait_timeout(guard, left);
    let (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
    (guard, Instant::now() >= deadline)
}

/// Ranks that have loaded the same NEFF.
#[derive(Debug)]
pub(crate) struct Group {
    round: Mutex<Round>,
    changed: Condvar,
}

#[derive(Debug)]
struct Round {
    /// Whether all ranks have loaded.
    open: bool,
    /// Goes up when an execution has finished.
    number: u64,
    /// Whether all ranks have arrived.
    running: bool,
    arrived: Vec<Option<Arc<Bound>>>,
    outcome: Outcome,
}

impl Group {
    fn new(ranks: u32) -> Self {
        Self {
            round: Mutex::new(Round {
                open: false,
                number: 0,
                running: false,
                arrived: vec![None; ranks as usize],
                outcome: Ok(Duration::ZERO),
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) {
        self.lock().open = true;
    }

    fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Arrives with a rank's tensors. The last to arrive runs the execution of all; every rank gets
    /// its outcome.
    ///
    /// # Errors
    /// What the execution failed with; `TIMEOUT` if not all arrive in time.
    pub(crate) fn execute(
        &self,
        rank: u32,
        bound: Arc<Bound>,
        timeout: Option<Duration>,
        run: impl FnOnce(&[Arc<Bound>]) -> Outcome,
    ) -> Outcome {
        let mut round = self.lock();
        let number = round.number;
        round.arrived[rank as usize] = Some(bound);
        if round.arrived.iter().all(Option::is_some) {
            let all: Vec<_> = round.arrived.iter_mut().filter_map(Option::take).collect();
            round.running = true;
            drop(round);
            let outcome = run(&all);
            let mut round = self.lock();
            round.running = false;
            round.number += 1;
            round.outcome.clone_from(&outcome);
            // Else whoever wakes has to wait once more.
            drop(round);
            self.changed.notify_all();
            return outcome;
        }
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            // While it runs, no deadline counts.
            let until = if round.running { None } else { deadline };
            let (guard, late) = wait(&self.changed, round, until);
            round = guard;
            if round.number != number {
                return round.outcome.clone();
            }
            if late && !round.running {
                let missing = round
                    .arrived
                    .iter()
                    .enumerate()
                    .filter(|(_, one)| one.is_none());
                let missing: Vec<_> = missing.map(|(rank, _)| rank).collect();
                round.arrived[rank as usize] = None;
                return Err(refuse!(
                    TIMEOUT,
                    "rank {rank} waits for ranks {missing:?} in vain"
                ));
            }
        }
    }
}

/// Values made once for a key and shared as long as somebody has them.
#[derive(Debug)]
pub(crate) struct Shared<T>(Mutex<HashMap<Owner, Weak<T>>>);

/// The hash of a NEFF, and how many ranks run it.
type Owner = ([u8; 32], u32);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Shared<T> {
    /// The value of a key, made if nobody has it.
    pub(crate) fn get(
        &self,
        key: Owner,
        make: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<Arc<T>, Failure> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get(&key).and_then(Weak::upgrade) {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        values.retain(|_, value| value.strong_count() > 0);
        values.insert(key, Arc::downgrade(&value));
        Ok(value)
    }
}
