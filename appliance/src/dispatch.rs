//! Which replica takes a request: the one with the least to do before its answer can begin, counting
//! what it has of the prompt already as done.
//!
//! A replica is an engine with a device of its own. Nothing is asked of the engines: what each is
//! likely to have cached is remembered from where the prompts before went.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::{Lost, Refused, Request, TokenId};

use crate::engine_thread::{Flight, Mailbox};
use crate::generation::Refusal;

/// Tokens of a block of a prompt: blocks are looked up one after the other. A few pages of KV.
const BLOCK: usize = 64;

/// Blocks remembered, of all prompts together: 4 million tokens' worth, which is more than devices
/// cache. A power of two.
const REMEMBERED: usize = 1 << 16;

/// What an answer in the making weighs, in tokens of a prompt: a decode row takes a share of every
/// step for as long as it lasts.
const ANSWER: u64 = 64;

/// The replicas of a model. Cloning shares them; they end when the last who could use them has gone.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    replicas: Arc<Replicas>,
    prefixes: Arc<Mutex<Prefixes>>,
}

/// Engines that end when this is dropped.
#[derive(Debug)]
struct Replicas(Box<[Replica]>);

impl Drop for Replicas {
    fn drop(&mut self) {
        for Replica { mailbox, .. } in &self.0 {
            mailbox.end("nobody uses the model any more");
        }
    }
}

/// The end of a model's engines. Keeps none of them alive; cloning is of the same.
#[derive(Clone, Debug)]
pub(crate) struct Ending(Arc<[Mailbox]>);

impl Ending {
    /// Ends every request of every replica with `why`, and then the replicas.
    pub(crate) fn end(&self, why: &str) {
        for mailbox in &*self.0 {
            mailbox.end(why);
        }
    }

    /// Waits until a replica has lost its device, or all have ended as they were told to.
    pub(crate) async fn ended(&self) -> Result<(), Lost> {
        let ended = self.0.iter().map(|mailbox| Box::pin(mailbox.ended()));
        futures_util::future::try_join_all(ended).await.map(drop)
    }

    /// Waits until all have ended and let go of their devices.
    pub(crate) async fn freed(&self) {
        for mailbox in &*self.0 {
            mailbox.freed().await;
        }
    }
}

#[derive(Debug)]
struct Replica {
    mailbox: Mailbox,
    /// What its requests in flight weigh, in tokens of a prompt.
    ahead: Arc<AtomicU64>,
}

/// A request in flight: what it weighs on its replica, and its hold on all of them.
#[derive(Debug)]
pub(crate) struct Share {
    _weight: Weight,
    _replicas: Arc<Replicas>,
}

/// What a request weighs on its replica. Dropping it takes the weight off.
#[derive(Debug)]
struct Weight {
    ahead: Arc<AtomicU64>,
    weight: u64,
}

impl Weight {
    fn new(ahead: &Arc<AtomicU64>, weight: u64) -> Self {
        ahead.fetch_add(weight, Ordering::Relaxed);
        Self {
            ahead: Arc::clone(ahead),
            weight,
        }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.ahead.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

impl Dispatch {
    /// Dispatches to the engines behind `mailboxes`, of which there is at least one.
    pub(crate) fn new(mailboxes: Vec<Mailbox>) -> Self {
        let replica = |mailbox| Replica {
            mailbox,
            ahead: Arc::default(),
        };
        Self {
            replicas: Arc::new(Replicas(mailboxes.into_iter().map(replica).collect())),
            prefixes: Arc::new(Mutex::new(Prefixes::new())),
        }
    }

    /// Hands `request` to a replica and waits until it is admitted or refused. It must have ended
    /// `timeout` after `arrived`. One that has too much waiting is passed over while another has not.
    pub(crate) async fn admit(
        &self,
        request: Request,
        arrived: Instant,
        timeout: Duration,
    ) -> Result<(Flight, Share), Refusal> {
        let share = |weight| Share {
            _weight: weight,
            _replicas: Arc::clone(&self.replicas),
        };
        if let [replica] = &*self.replicas.0 {
            let flight = replica.mailbox.admit(request, arrived, timeout).await?;
            return Ok((flight, share(Weight::new(&replica.ahead, 0))));
        }
        let (blocks, plan) = self.plan(&request);
        let mut refusal = Refusal::Draining;
        for Choice { replica, weight } in plan {
            let Replica { mailbox, ahead } = &self.replicas.0[replica];
            let weight = Weight::new(ahead, weight);
            match mailbox.admit(request.clone(), arrived, timeout).await {
                Ok(flight) => {
                    self.prefixes().remember(&blocks, replica);
                    return Ok((flight, share(weight)));
                }
                Err(full) if is_full(&full) => refusal = full,
                Err(other) => return Err(other),
            }
        }
        Err(refusal)
    }

    /// The blocks of the prompt, and the replicas in the order in which they are tried.
    fn plan(&self, request: &Request) -> (Vec<u64>, Vec<Choice>) {
        let prefixes = self.prefixes();
        let blocks = prefixes.blocks(&request.prompt, request.cache_salt);
        let prompt = request.prompt.len() as u64;
        let answers = ANSWER * u64::from(request.choices);
        let mut choices: Vec<_> = (self.replicas.0.iter().enumerate())
            .map(|(replica, Replica { ahead, .. })| {
                let cached = (prefixes.found(&blocks, replica) * BLOCK) as u64;
                let weight = prompt.saturating_sub(cached) + answers;
                (
                    ahead.load(Ordering::Relaxed) + weight,
                    Choice { replica, weight },
                )
            })
            .collect();
        choices.sort_by_key(|(cost, Choice { replica, .. })| (*cost, *replica));
        let choices = choices.into_iter().map(|(_, choice)| choice).collect();
        (blocks, choices)
    }

    /// How they end, and how to end them.
    pub(crate) fn ending(&self) -> Ending {
        let mailboxes = self.replicas.0.iter();
        Ending(
            mailboxes
                .map(|Replica { mailbox, .. }| mailbox.clone())
                .collect(),
        )
    }

    fn prefixes(&self) -> std::sync::MutexGuard<'_, Prefixes> {
        // An entry is written whole, whatever panics.
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A replica that may take a request, and what the request would weigh there.
#[derive(Debug)]
struct Choice {
    replica: usize,
    weight: u64,
}

/// Whether another replica may still have room.
fn is_full(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Engine(Refused::TooManyRequests { .. } | Refused::TooManyTokens { .. })
    )
}

/// Where blocks of prompts went last. A new block takes the place of an old one whose hash ends alike,
/// so that it never grows.
#[derive(Debug)]
struct Prefixes {
    /// Keyed, so that nobody outside can aim at a place.
    hasher: RandomState,
    places: Box<[Option<(u64, usize)>]>,
}

impl Prefixes {
    fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            places: vec![None; REMEMBERED].into(),
        }
    }

    /// A hash for each whole block of `prompt`, of all before it as well.
    fn blocks(&self, prompt: &[TokenId], salt: u64) -> Vec<u64> {
        let mut hash = salt;
        let hashes = prompt.chunks_exact(BLOCK).map(|block| {
            let mut state = self.hasher.build_hasher();
            (hash, block).hash(&mut state);
            hash = std::hash::Hasher::finish(&state);
            hash
        });
        hashes.collect()
    }

    fn place(hash: u64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the lower bits are what is wanted"
        )]
        let place = hash as usize % REMEMBERED;
        place
    }

    /// How many of `blocks`, from the first on, went to `replica` last.
    fn found(&self, blocks: &[u64], replica: usize) -> usize {
        let is_there = |hash: &&u64| self.places[Self::place(**hash)] == Some((**hash, replica));
        blocks.iter().take_while(is_there).count()
    }

    fn remember(&mut self, blocks: &[u64], replica: usize) {
        for hash in blocks {
            self.places[Self::place(*hash)] = Some((*hash, replica));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(series: u32, count: u32) -> Vec<TokenId> {
        (0..count)
            .map(|at| TokenId(series * 100_000 + at))
            .collect()
    }

    #[test]
    fn a_prefix_is_found_where_it_went_last_and_as_far_as_it_is_the_same() {
        let mut prefixes = Prefixes::new();
        let long = prefixes.blocks(&tokens(1, 300), 0);
        assert_eq!(long.len(), 4, "whole blocks only");
        prefixes.remember(&long, 1);
        let mut other = tokens(1, 300);
        other[150] = TokenId(7);
        let other = prefixes.blocks(&other, 0);
        assert_eq!(prefixes.found(&other, 1), 2);
        assert_eq!(prefixes.found(&other, 0), 0);
        let salted = prefixes.blocks(&tokens(1, 300), 5);
        assert_eq!(prefixes.found(&salted, 1), 0, "another salt shares nothing");
        prefixes.remember(&long[..1], 0);
        assert_eq!(prefixes.found(&long, 1), 0);
        assert_eq!(prefixes.found(&long, 0), 1);
    }

    #[test]
    fn a_share_weighs_for_as_long_as_it_lives() {
        let ahead = Arc::default();
        let one = Weight::new(&ahead, 10);
        let other = Weight::new(&ahead, 5);
        drop(one);
        assert_eq!(ahead.load(Ordering::Relaxed), 5);
        drop(other);
        assert_eq!(ahead.load(Ordering::Relaxed), 0);
    }
}
