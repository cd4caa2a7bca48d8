//! Which rows run next: who gets a place, who gets a page, how much of a prompt goes into a step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Axis, Profile};
use crate::pages::Pages;
use crate::request::{Constraint, Limits, RequestId};
use crate::sample::Place;
use crate::sequence::{Rank, Sequence, len32};
use crate::step::{PageCopy, PageId, Row, TokenId, TokenMask, Want};

/// All sequences of an engine, and the pages they share.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) pages: Pages,
    /// Sequences without a place, the next one first.
    queue: BTreeMap<Rank, Sequence>,
    /// Sequences with a place, ascending by rank.
    pub(crate) running: Vec<Sequence>,
    pub(crate) preemptions: u64,
    pub(crate) cost: Cost,
    profile: Profile,
    limits: Limits,
    places: usize,
    prefilled_last: bool,
}

/// A step to be, in memory that is kept from step to step.
#[derive(Default, Debug)]
pub(crate) struct Plan {
    pub(crate) copies: Vec<PageCopy>,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) pages: Vec<PageId>,
    pub(crate) masks: Vec<Arc<TokenMask>>,
    pub(crate) rows: Vec<Row>,
    pub(crate) planned: Vec<Planned>,
    pub(crate) load: Load,
    ready: Ready,
}

/// Places of the sequences that can run.
#[derive(Default, Debug)]
struct Ready {
    /// With one token to bring.
    decoding: Vec<usize>,
    /// With more.
    prefilling: Vec<usize>,
}

/// What is remembered of a row until its step lands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) rank: Rank,
    /// Where its sequence stood among the running ones: a hint.
    place: usize,
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) asked: Asked,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Nothing,
    Next,
    Scores,
}

/// What a step brings to the device.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Load {
    /// Rows of one token.
    decode_rows: u32,
    /// Tokens of the other rows.
    prefill: u32,
    /// Tokens of prompts, and of outputs computed again.
    pub(crate) prompt_tokens: u32,
    /// Tokens that pad it.
    pub(crate) padding: u32,
}

/// What a token of a step costs, learned from the time steps with prefill rows take.
#[derive(Default, Debug)]
pub(crate) struct Cost {
    /// Seconds.
    token: Option<f64>,
    watched: Option<(Duration, Load)>,
}

impl Cost {
    /// A step with this load is about to be waited for.
    pub(crate) fn watch(&mut self, now: Duration, load: Load) {
        self.watched = (load.prefill > 0).then_some((now, load));
    }

    /// The wait is over. A slower step is believed at once, a faster one by half: the first would
    /// keep streams waiting if it were true.
    pub(crate) fn learn(&mut self, now: Duration) {
        let Some((since, load)) = self.watched.take() else {
            return;
        };
        let tokens = f64::from(load.prefill + load.decode_rows + load.padding);
        let seen = now.saturating_sub(since).as_secs_f64() / tokens;
        let known = self.token.unwrap_or(seen);
        self.token = Some(if seen > known {
            seen
        } else {
            (seen + known) / 2.0
        });
    }

    /// Tokens that a step of `time` can hold; none while nothing is known.
    fn tokens_within(&self, time: Duration) -> u32 {
        match self.token {
            None => 0,
            // Saturates: a device that takes no time takes any number.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "times are not negative, and the cast saturates"
            )]
            Some(token) => (time.as_secs_f64() / token) as u32,
        }
    }
}

impl Load {
    /// Whether there are rows of one token.
    pub(crate) fn decodes(&self) -> bool {
        self.decode_rows > 0
    }
}

impl Planned {
    /// Entries of candidates that the row gives.
    pub(crate) fn entries(&self) -> usize {
        match self.asked {
            Asked::Nothing => 0,
            Asked::Next => 1,
            Asked::Scores => (self.end - self.start) as usize,
        }
    }
}

impl Plan {
    fn clear(&mut self) {
        let Self {
            copies,
            tokens,
            pages,
            masks,
            rows,
            planned,
            load,
            ready,
        } = self;
        copies.clear();
        tokens.clear();
        pages.clear();
        masks.clear();
        rows.clear();
        planned.clear();
        *load = Load::default();
        ready.decoding.clear();
        ready.prefilling.clear();
    }

    /// Adds the next `count` tokens of a sequence as a row.
    fn push(&mut self, sequence: &Sequence, place: usize, count: u32, page_tokens: u32) {
        let (start, end) = (sequence.launched, sequence.launched + count);
        let scores = sequence.scoring.is_some();
        let asked = match end as usize == sequence.tokens.len() {
            _ if scores => Asked::Scores,
            true => Asked::Next,
            false => Asked::Nothing,
        };
        let tokens = len32(self.tokens.len());
        let brought = end as usize + usize::from(scores);
        self.tokens
            .extend_from_slice(&sequence.tokens[start as usize..brought]);
        let pages = len32(self.pages.len());
        let read = end.div_ceil(page_tokens);
        self.pages
            .extend_from_slice(&sequence.pages[..read as usize]);
        if let Some(from) = sequence.copy_from {
            let to = sequence.pages[(start / page_tokens) as usize];
            self.copies.push(PageCopy { from, to });
        }
        let mask = self.mask(sequence, asked);
        self.rows.push(Row {
            tokens: tokens..tokens + count,
            pages: pages..pages + read,
            position: start,
            mask,
            want: want(sequence, asked, tokens + 1..tokens + 1 + count),
        });
        self.planned.push(Planned {
            rank: sequence.rank,
            place,
            start,
            end,
            asked,
        });
        match count {
            1 => self.load.decode_rows += 1,
            _ => self.load.prefill += count,
        }
        let known = sequence.prompt().max(sequence.reached);
        self.load.prompt_tokens += known.min(end).saturating_sub(start);
    }

    fn mask(&mut self, sequence: &Sequence, asked: Asked) -> Option<u32> {
        let Constraint::Only(mask) = &sequence.request.constraint else {
            return None;
        };
        if asked != Asked::Next {
            return None;
        }
        // Choices of one request stand side by side.
        if !self
            .masks
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, mask))
        {
            self.masks.push(Arc::clone(mask));
        }
        Some(len32(self.masks.len()) - 1)
    }
}

fn want(sequence: &Sequence, asked: Asked, targets: std::ops::Range<u32>) -> Want {
    let request = &sequence.request;
    match asked {
        Asked::Nothing => Want::Nothing,
        Asked::Scores => Want::EachPosition {
            width: request.prompt_logprobs.unwrap_or(0).max(1),
            targets,
        },
        Asked::Next => {
            let place = Place {
                request,
                seen: &sequence.seen,
                choice: sequence.choice,
                index: sequence.produced(),
            };
            Want::Candidates {
                width: place.width(),
            }
        }
    }
}

impl Schedule {
    pub(crate) fn new(profile: &Profile, mut limits: Limits, secret: [u8; 16]) -> Self {
        limits.step_tokens = limits.step_tokens.max(1);
        // However many decode, a page of a prompt has room in every step: nobody starves.
        let for_prompts = profile.page_tokens.min(limits.step_tokens / 2);
        let places = limits
            .running
            .min(profile.decode.most())
            .min(limits.step_tokens - for_prompts)
            .max(1);
        Self {
            pages: Pages::new(profile.pages, profile.page_tokens, secret),
            queue: BTreeMap::new(),
            running: Vec::new(),
            preemptions: 0,
            cost: Cost::default(),
            profile: profile.clone(),
            limits,
            places: places as usize,
            prefilled_last: false,
        }
    }

    /// Sequences that may have a place at once.
    pub(crate) fn places(&self) -> u32 {
        len32(self.places)
    }

    /// All sequences.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(self.queue.values())
    }

    /// A row of the sequence at `place` has landed: all before position `end` is computed.
    pub(crate) fn land(&mut self, place: usize, end: u32) {
        self.running[place].land(end, &mut self.pages);
    }

    /// Puts a sequence without pages where it waits for its turn.
    pub(crate) fn enqueue(&mut self, sequence: Sequence) {
        self.queue.insert(sequence.rank, sequence);
    }

    /// Gives a fork a place and pages beside its leader, or a turn in the queue.
    pub(crate) fn seat_beside(&mut self, mut fork: Sequence, leader: usize) {
        let leader = &self.running[leader];
        if self.running.len() < self.places && fork.settle_beside(leader, &mut self.pages) {
            self.seat(fork);
        } else {
            self.enqueue(fork);
        }
    }

    fn seat(&mut self, sequence: Sequence) {
        let place = self
            .running
            .partition_point(|other| other.rank < sequence.rank);
        self.running.insert(place, sequence);
    }

    /// Where the sequence of a row stands now; `None` if it has gone.
    pub(crate) fn place_of(&self, row: &Planned) -> Option<usize> {
        if let Some(sequence) = self.running.get(row.place)
            && sequence.rank == row.rank
        {
            return Some(row.place);
        }
        let found = self
            .running
            .binary_search_by_key(&row.rank, |other| other.rank);
        found.ok()
    }

    /// Takes out the sequence at a place and gives its pages back.
    pub(crate) fn remove(&mut self, place: usize) -> Sequence {
        let mut sequence = self.running.remove(place);
        sequence.vacate(&mut self.pages);
        sequence
    }

    /// Takes out all sequences of a request, those with a place first, and gives their pages back.
    pub(crate) fn remove_all(&mut self, ranks: std::ops::RangeInclusive<Rank>) -> Vec<Sequence> {
        let start = self
            .running
            .partition_point(|other| other.rank < *ranks.start());
        let end = self
            .running
            .partition_point(|other| other.rank <= *ranks.end());
        let mut removed: Vec<_> = self.running.drain(start..end).collect();
        for sequence in &mut removed {
            sequence.vacate(&mut self.pages);
        }
        let queued: Vec<Rank> = self.queue.range(ranks).map(|(rank, _)| *rank).collect();
        removed.extend(queued.iter().filter_map(|rank| self.queue.remove(rank)));
        removed
    }

    /// All sequences of a request.
    pub(crate) fn each_of(
        &mut self,
        ranks: std::ops::RangeInclusive<Rank>,
    ) -> impl Iterator<Item = &mut Sequence> {
        let Self { running, queue, .. } = self;
        let seated = running.iter_mut();
        let within = ranks.clone();
        seated
            .filter(move |sequence| within.contains(&sequence.rank))
            .chain(queue.range_mut(ranks).map(|(_, sequence)| sequence))
    }

    /// Plans the next step, of the sequences in `only` or of all; without rows if none can run.
    ///
    /// While a step that `decodes` is in flight, no other is planned that does: who becomes ready
    /// meanwhile waits for it and then runs together with its rows. A device that reads all weights
    /// for every step takes about as long for few rows as for many, so two steps in turn, each with
    /// a part of the rows, would give every stream half as many tokens.
    pub(crate) fn plan(&mut self, plan: &mut Plan, only: Option<&[Rank]>, decodes: bool) {
        plan.clear();
        if only.is_none() {
            self.seat_the_queue();
        }
        self.make_room(only);
        let others_wait = self.find_ready(&mut plan.ready, only);
        if decodes {
            plan.ready.decoding.clear();
        }
        // Where the two do not mix they take turns.
        let ready = &plan.ready;
        let apart =
            !self.profile.mixed && !ready.decoding.is_empty() && !ready.prefilling.is_empty();
        if !apart || self.prefilled_last {
            self.plan_decodes(plan);
        }
        if !apart || !self.prefilled_last {
            self.plan_prefills(plan, others_wait);
        }
        self.prefilled_last = plan.load.prefill > 0;
        plan.load.padding = self.padding(&plan.load);
        for row in &plan.planned {
            self.running[row.place].launched = row.end;
        }
    }

    /// Finds who can run, by their places. Whether somebody is waiting for a next token.
    fn find_ready(&self, ready: &mut Ready, only: Option<&[Rank]>) -> bool {
        let mut in_flight = false;
        for (place, sequence) in self.running.iter().enumerate() {
            in_flight |= sequence.in_flight();
            if chosen(sequence, only) && sequence.has_room(&self.pages) {
                match sequence.pending() {
                    0 => {}
                    1 => ready.decoding.push(place),
                    _ => ready.prefilling.push(place),
                }
            }
        }
        in_flight || !ready.decoding.is_empty()
    }

    fn plan_decodes(&self, plan: &mut Plan) {
        for at in 0..plan.ready.decoding.len() {
            let place = plan.ready.decoding[at];
            plan.push(&self.running[place], place, 1, self.profile.page_tokens);
        }
    }

    /// Adds chunks of prompts, the first come first, as far as the budget goes.
    fn plan_prefills(&self, plan: &mut Plan, others_wait: bool) {
        let prefilling = plan.ready.prefilling.iter();
        let pending = prefilling.map(|place| self.running[*place].pending()).sum();
        let decode_rows = len32(plan.rows.len());
        let mut budget = self.prefill_budget(decode_rows, pending, others_wait);
        for at in 0..plan.ready.prefilling.len() {
            // A single token makes a decode row, which may be one too many unless it is the first.
            if budget == 0 || (budget == 1 && at > 0) {
                break;
            }
            let place = plan.ready.prefilling[at];
            let sequence = &self.running[place];
            let count = sequence.pending().min(budget);
            plan.push(sequence, place, count, self.profile.page_tokens);
            budget -= count;
        }
    }

    /// Undoes what a plan that did not run has claimed.
    pub(crate) fn undo(&mut self, rows: &[Planned]) {
        for row in rows {
            if let Some(place) = self.place_of(row) {
                let sequence = &mut self.running[place];
                sequence.launched = sequence.launched.min(row.start);
            }
        }
    }

    /// Gives places and pages to the first in the queue, as long as there are some or somebody of
    /// less importance has them.
    fn seat_the_queue(&mut self) {
        loop {
            // A spare page for each who runs: it will soon want it, and preempting costs more.
            let spare = self.running.len();
            let full = spare >= self.places;
            let Some((rank, head)) = self.queue.iter_mut().find(|(_, head)| !head.paused) else {
                return;
            };
            let rank = *rank;
            if !full && head.settle(&mut self.pages, spare) {
                if let Some(sequence) = self.queue.remove(&rank) {
                    self.seat(sequence);
                }
            } else {
                let below = |other: &Sequence| other.rank.priority > rank.priority;
                let Some(place) = self.least_important(below) else {
                    return;
                };
                self.preempt(place);
            }
        }
    }

    /// Gives a page to each sequence that has filled its last one. If none is left the newest must
    /// go: paused ones first, then those after the sequence in need. The first of all always finds
    /// one.
    fn make_room(&mut self, only: Option<&[Rank]>) {
        let mut place = 0;
        while let Some(sequence) = self.running.get(place) {
            let rank = sequence.rank;
            if chosen(sequence, only) && !sequence.has_room(&self.pages) {
                while self.pages.available() == 0
                    && let Some(victim) = self.least_important(|other| other.rank > rank)
                {
                    self.preempt(victim);
                    place -= usize::from(victim < place);
                }
                if let Some(page) = self.pages.take() {
                    self.running[place].pages.push(page);
                }
            }
            place += 1;
        }
    }

    /// The place of the last paused sequence, or else of the last one for which `below` holds. What
    /// is in flight stays.
    fn least_important(&self, below: impl Fn(&Sequence) -> bool) -> Option<usize> {
        let mut free = self.running.iter().enumerate().rev();
        let mut last = None;
        free.find_map(|(place, sequence)| {
            if sequence.in_flight() {
                return None;
            }
            if last.is_none() && below(sequence) {
                last = Some(place);
            }
            sequence.paused.then_some(place)
        })
        .or(last)
    }

    fn preempt(&mut self, place: usize) {
        let sequence = self.remove(place);
        self.queue.insert(sequence.rank, sequence);
        self.preemptions += 1;
    }

    /// Tokens that the prefill rows of the next step may bring.
    fn prefill_budget(&self, decode_rows: u32, pending: u32, others_wait: bool) -> u32 {
        let room = (self.limits.step_tokens - decode_rows).min(self.profile.prefill.most().max(1));
        let most = match others_wait {
            false => room,
            true => {
                let within = self.cost.tokens_within(self.limits.step_time);
                let within = within.saturating_sub(decode_rows);
                within.max(self.profile.page_tokens).min(room)
            }
        };
        fill(&self.profile.prefill, pending, most, room)
    }

    fn padding(&self, load: &Load) -> u32 {
        let padding = |axis: &Axis, n: u32| match n {
            0 => 0,
            _ => axis.fit(n).map_or(0, |size| size - n),
        };
        padding(&self.profile.prefill, load.prefill)
            + padding(&self.profile.decode, load.decode_rows)
    }

    /// Whether the books of pages agree with what sequences hold.
    pub(crate) fn audit(&self) -> Result<(), String> {
        if let Some((rank, _)) = self
            .queue
            .iter()
            .find(|(_, queued)| queued.held().next().is_some())
        {
            return Err(format!("{rank:?} holds pages in the queue"));
        }
        self.pages
            .audit(self.running.iter().flat_map(|sequence| sequence.held()))
    }
}

fn chosen(sequence: &Sequence, only: Option<&[Rank]>) -> bool {
    !sequence.paused && only.is_none_or(|ranks| ranks.contains(&sequence.rank))
}

/// How many of `pending` tokens to run: `most` if the sizes allow, at the outside `room`, and no
/// step that is mostly padding if a smaller size can be filled.
fn fill(axis: &Axis, pending: u32, most: u32, room: u32) -> u32 {
    let wanted = pending.min(most);
    let Axis::Buckets(sizes) = axis else {
        return wanted;
    };
    let below = sizes.iter().copied().rfind(|size| *size <= wanted);
    let above = sizes.iter().copied().find(|size| wanted <= *size);
    match (below, above) {
        // Not even the smallest size fits: what pads it is free.
        (None, Some(above)) => pending.min(above).min(room),
        (Some(_), Some(above)) if above <= most && wanted >= above / 2 => wanted,
        (Some(below), _) => below,
        (None, None) => wanted,
    }
}

/// The ranks of all sequences of a request.
pub(crate) fn ranks_of(priority: i32, request: RequestId) -> std::ops::RangeInclusive<Rank> {
    let rank = |choice| Rank {
        priority,
        request,
        choice,
    };
    rank(0)..=rank(u32::MAX)
}
