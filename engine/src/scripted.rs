//! A device that follows a script: a model small enough to check by hand, faults where the script
//! has them, and the seam's contract checked at every step.
//!
//! The next token depends on every token before it, *as read through the KV pages*: a wrong page
//! table, a missing copy or a stale page gives wrong tokens, or a fault that says what was wrong.

use std::collections::{BTreeMap, VecDeque};

use crate::backend::{Axis, Backend, Cause, Fault, Profile, Ticket};
use crate::check::Checker;
use crate::step::{Candidates, PageId, Row, Step, TokenId, TokenMask, Want};

/// A device that follows a script.
#[derive(Debug)]
pub struct Scripted {
    profile: Profile,
    script: Script,
    /// What each slot of each page holds: a token and its position.
    kv: Vec<Option<(u32, TokenId)>>,
    checker: Checker,
    submitted: u64,
    flights: VecDeque<(u64, Result<Candidates, Fault>)>,
    read: Vec<TokenId>,
    /// Memory of collected steps.
    spare: Vec<Candidates>,
}

/// What a [`Scripted`] device does beside its work.
#[derive(Clone, Default, Debug)]
pub struct Script {
    /// Faults, by how many steps were tried before.
    pub faults: BTreeMap<u64, (Moment, Fault)>,
    /// Every step that brings this token is rejected.
    pub poison: Option<TokenId>,
    /// Neither reads nor writes KV and checks nothing: each row's next token is its last one, for
    /// measuring what the engine costs.
    pub idle: bool,
}

/// When a scripted fault happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// The step is not taken.
    Submit,
    /// The step runs, and is lost.
    Collect,
}

impl Scripted {
    /// A device with this profile.
    pub fn new(profile: Profile, script: Script) -> Self {
        let slots = profile.pages as usize * profile.page_tokens as usize;
        Self {
            profile,
            script,
            kv: vec![None; slots],
            checker: Checker::default(),
            submitted: 0,
            flights: VecDeque::new(),
            read: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// A profile with few and small pages, on which everything is allowed.
    pub fn profile_of(pages: u32, page_tokens: u32, vocabulary: u32) -> Profile {
        Profile {
            prefill: Axis::UpTo(1024),
            decode: Axis::UpTo(256),
            context: Axis::UpTo(pages * page_tokens),
            mixed: true,
            page_tokens,
            pages,
            vocabulary,
            candidates: vocabulary,
            depth: 1,
        }
    }

    /// The model: log-probabilities of all tokens to follow `tokens` (-inf where `mask` forbids
    /// one), and the normalizer. Logits are quarters from -4 to 4, so equals are common.
    pub fn model(tokens: &[TokenId], vocabulary: u32, mask: Option<&TokenMask>) -> (Vec<f32>, f32) {
        let read = tokens.iter().fold(0, |read, token| mix(read, token.0));
        let logits: Vec<f32> = (0..vocabulary)
            .map(
                |id| match mask.is_none_or(|mask| mask.allows(TokenId(id))) {
                    #[expect(clippy::cast_precision_loss, reason = "below 33")]
                    true => (mix(read, id) % 33) as f32 / 4.0 - 4.0,
                    false => f32::NEG_INFINITY,
                },
            )
            .collect();
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        #[expect(clippy::cast_possible_truncation, reason = "the seam speaks f32")]
        let normalizer = sum.ln() as f32;
        let logprobs = logits.iter().map(|logit| logit - normalizer).collect();
        (logprobs, normalizer)
    }

    fn run(&mut self, step: &Step<'_>, out: &mut Candidates) -> Result<(), Fault> {
        if step.rows.is_empty() {
            return Err(broken("it has no rows".to_owned()));
        }
        self.checker.check(step, &self.profile).map_err(contract)?;
        let size = self.profile.page_tokens as usize;
        for copy in step.copies {
            let (from, to) = (copy.from.0 as usize * size, copy.to.0 as usize * size);
            self.kv.copy_within(from..from + size, to);
        }
        for row in step.rows {
            let pages = step.pages_of(row);
            for (position, token) in (row.position..).zip(step.tokens_of(row)) {
                let slot = slot(pages, position, self.profile.page_tokens);
                self.kv[slot] = Some((position, *token));
            }
        }
        for row in step.rows {
            self.answer(step, row, out)?;
        }
        Ok(())
    }

    /// Reads a row's sequence back from its pages and gives what was asked.
    fn answer(&mut self, step: &Step<'_>, row: &Row, out: &mut Candidates) -> Result<(), Fault> {
        let pages = step.pages_of(row);
        let end = row.position + row.tokens.end - row.tokens.start;
        self.read.clear();
        for position in 0..end {
            let slot = slot(pages, position, self.profile.page_tokens);
            match self.kv[slot] {
                Some((at, token)) if at == position => self.read.push(token),
                found => {
                    let page = pages[(position / self.profile.page_tokens) as usize];
                    let why = format!("position {position} in page {page:?} holds {found:?}");
                    return Err(broken(why));
                }
            }
        }
        match &row.want {
            Want::Nothing => {}
            Want::Candidates { width } => {
                self.push(&self.read, step.mask_of(row), *width, None, out);
            }
            Want::EachPosition { width, targets } => {
                let targets = &step.tokens[targets.start as usize..targets.end as usize];
                for (last, target) in (row.position as usize..).zip(targets) {
                    let read = &self.read[..=last];
                    self.push(read, step.mask_of(row), *width, Some(*target), out);
                }
            }
        }
        Ok(())
    }

    fn push(
        &self,
        read: &[TokenId],
        mask: Option<&TokenMask>,
        width: u32,
        target: Option<TokenId>,
        out: &mut Candidates,
    ) {
        let (logprobs, normalizer) = Self::model(read, self.profile.vocabulary, mask);
        let target = target.map(|token| logprobs[token.0 as usize]);
        let mut all: Vec<_> = (0..).map(TokenId).zip(logprobs).collect();
        all.retain(|(_, logprob)| logprob.is_finite());
        all.sort_by(|one, other| other.1.total_cmp(&one.1));
        all.truncate(width.min(self.profile.candidates) as usize);
        // No particular order: the engine must not rely on one.
        all.reverse();
        out.push(all, normalizer, target);
    }
}

impl Backend for Scripted {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, Fault> {
        let number = self.submitted;
        self.submitted += 1;
        if self.flights.len() >= self.profile.depth as usize {
            return Err(broken(format!(
                "{} steps are in flight",
                self.flights.len()
            )));
        }
        if let Some(token) = self.script.poison
            && step.tokens.contains(&token)
        {
            return Err(Fault::Reject(Cause(format!("token {token} is poison"))));
        }
        let mut out = self.spare.pop().unwrap_or_default();
        out.clear();
        let fault = self.script.faults.remove(&number);
        let given = match fault {
            Some((Moment::Submit, fault)) => return Err(fault),
            Some((Moment::Collect, fault)) => self.run(step, &mut out).and(Err(fault)),
            None if self.script.idle => {
                repeat(step, &mut out);
                Ok(())
            }
            None => self.run(step, &mut out),
        };
        self.flights.push_back((number, given.map(|()| out)));
        Ok(Ticket(number))
    }

    fn collect(&mut self, ticket: Ticket, out: &mut Candidates) -> Result<(), Fault> {
        match self.flights.pop_front() {
            Some((number, given)) if number == ticket.0 => {
                let given = std::mem::replace(out, given?);
                self.spare.push(given);
                Ok(())
            }
            found => Err(broken(format!("{ticket:?} is not the oldest: {found:?}"))),
        }
    }
}

/// The engine has broken the contract of the seam: tests find it by the loss of the device.
fn broken(why: String) -> Fault {
    Fault::Restart(Cause(format!("the step breaks the contract: {why}")))
}

/// A step that no device would take is the engine's fault, so the device is lost by it here.
fn contract(fault: Fault) -> Fault {
    broken(fault.to_string())
}

/// SplitMix64's finaliser over the state and a token.
fn mix(state: u64, token: u32) -> u64 {
    let mixed = state
        .wrapping_add(u64::from(token) + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

fn slot(pages: &[PageId], position: u32, page_tokens: u32) -> usize {
    let page = pages[(position / page_tokens) as usize];
    page.0 as usize * page_tokens as usize + (position % page_tokens) as usize
}

/// Each row's next token is its last one.
fn repeat(step: &Step<'_>, out: &mut Candidates) {
    for row in step.rows {
        if let (Want::Candidates { .. }, [.., last]) = (&row.want, step.tokens_of(row)) {
            out.push([(*last, 0.0)], 0.0, None);
        }
    }
}
