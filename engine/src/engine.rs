//! The loop: `admit`, `cancel`, `turn`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::admission::{context_of, refuse_the_invalid};
use crate::backend::{Backend, Cause, Fault, Ticket};
use crate::delivery::{Delivery, Event};
use crate::request::{Finish, Limits, Priority, Request, RequestId};
use crate::sample::{Place, Sampler};
use crate::schedule::{Asked, Load, Plan, Planned, Schedule, ranks_of};
use crate::sequence::{Rank, Sequence, len32};
use crate::step::{Candidates, Entry, Step, TokenMask};

/// How often a step is tried when the device fails for now; then the device counts as lost.
const TRIES: u32 = 3;

/// Serves many requests on one device.
#[derive(Debug)]
pub struct Engine<B> {
    backend: B,
    limits: Limits,
    /// The most tokens a sequence may have: what the limits, the device and its pages allow.
    context: u32,
    schedule: Schedule,
    requests: BTreeMap<RequestId, Standing>,
    deadlines: BTreeSet<(Duration, RequestId)>,
    next_request: u64,
    flights: VecDeque<Flight>,
    /// Sets of sequences to be run apart, because one of them is why the device rejected a step.
    suspects: VecDeque<Vec<Rank>>,
    failures: u32,
    lost: Option<Lost>,
    stats: Stats,
    sampler: Sampler,
    plan: Plan,
    candidates: Candidates,
    /// Memory of landed flights.
    spare: Vec<Vec<Planned>>,
}

/// What is known of a request beside its sequences.
#[derive(Debug)]
struct Standing {
    priority: Priority,
    deadline: Option<Duration>,
    /// Choices that have not ended.
    open: u32,
}

/// A step in flight.
#[derive(Debug)]
struct Flight {
    ticket: Ticket,
    rows: Vec<Planned>,
    load: Load,
    of_suspects: bool,
}

/// What a turn did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Nothing is in flight and nothing can run: the next turn waits for work, a resume or a
    /// deadline.
    Idle,
    /// A step landed or was launched: turn again.
    Ran,
}

/// Why a request was not admitted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The prompt leaves no room for a token in the context, which is what the limits, the device
    /// and all of its pages together allow.
    #[error("a prompt of {prompt} tokens does not fit a context of {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// Positions a sequence may have.
        context: u32,
    },
    /// A value that cannot be served, named.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of [`Request`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// `queued_requests` wait already.
    #[error("{queued} requests wait already")]
    TooManyRequests {
        /// How many wait.
        queued: u32,
    },
    /// `queued_tokens` wait already.
    #[error("{queued} prompt tokens wait already")]
    TooManyTokens {
        /// How many wait.
        queued: u64,
    },
    /// The engine has ended.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// The device is lost: every request has had its `Finished`, and the engine has ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device is lost: {0}")]
pub struct Lost(pub Cause);

/// How the engine stands, for metrics: gauges of now and counts since the start.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Stats {
    /// Continuations that have left the queue and not ended.
    pub running: u32,
    /// Requests that have not left the queue.
    pub waiting: u32,
    /// Prompt tokens of those.
    pub waiting_tokens: u64,
    /// KV pages on the device.
    pub pages: u32,
    /// Pages that some continuation holds (cached pages that nobody holds count as free).
    pub pages_used: u32,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Those found.
    pub prefix_hits: u64,
    /// Continuations put back to be computed again.
    pub preemptions: u64,
    /// Prompt (and recomputed) tokens run.
    pub prefill_tokens: u64,
    /// Tokens produced.
    pub decode_tokens: u64,
    /// Steps landed.
    pub steps: u64,
    /// Tokens that steps were padded with.
    pub padding_tokens: u64,
}

impl<B: Backend> Engine<B> {
    /// An engine on an opened device. `secret` keys the prefix cache's hashes, so that nobody
    /// outside can make two prefixes collide.
    pub fn new(backend: B, limits: Limits, secret: [u8; 16]) -> Self {
        let profile = backend.profile();
        let stats = Stats {
            pages: profile.pages,
            ..Stats::default()
        };
        Self {
            context: context_of(profile, &limits),
            schedule: Schedule::new(profile, limits.clone(), secret),
            backend,
            limits,
            requests: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_request: 0,
            flights: VecDeque::new(),
            suspects: VecDeque::new(),
            failures: 0,
            lost: None,
            stats,
            sampler: Sampler::default(),
            plan: Plan::default(),
            candidates: Candidates::default(),
            spare: Vec::new(),
        }
    }

    /// Takes on a request, or says why not. What follows comes out of [`turn`](Self::turn).
    pub fn admit(&mut self, request: Request, now: Duration) -> Result<RequestId, Refused> {
        // A deadline that has passed is found by the next turn, like any other.
        let _ = now;
        if let Some(lost) = &self.lost {
            return Err(lost.clone().into());
        }
        refuse_the_invalid(&request, self.backend.profile())?;
        let prompt = len32(request.prompt.len());
        if prompt >= self.context {
            let context = self.context;
            return Err(Refused::TooLong { prompt, context });
        }
        self.refuse_the_surplus(prompt)?;
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.stats.waiting += 1;
        self.stats.waiting_tokens += u64::from(prompt);
        self.deadlines
            .extend(request.deadline.map(|deadline| (deadline, id)));
        let standing = Standing {
            priority: request.priority,
            deadline: request.deadline,
            open: request.choices,
        };
        self.requests.insert(id, standing);
        let sequence = Sequence::new(id, Arc::new(request), self.context);
        self.schedule.enqueue(sequence);
        Ok(id)
    }

    /// Refuses what exceeds the queue. Who will find a place at once does not wait.
    fn refuse_the_surplus(&self, prompt: u32) -> Result<(), Refused> {
        let free = self.schedule.places().saturating_sub(self.stats.running);
        let queued = self.stats.waiting.saturating_sub(free);
        if self.stats.waiting < free {
            return Ok(());
        }
        if queued >= self.limits.queued_requests {
            return Err(Refused::TooManyRequests { queued });
        }
        let queued = self.stats.waiting_tokens;
        // However long, one may wait: it would not be served otherwise.
        if queued > 0 && queued + u64::from(prompt) > self.limits.queued_tokens {
            return Err(Refused::TooManyTokens { queued });
        }
        Ok(())
    }

    /// Ends a request without further deliveries. Unknown and ended ones are ignored. Its pages are
    /// free at once: a step in flight runs before any step that could use them again.
    pub fn cancel(&mut self, request: RequestId) {
        self.dismiss(request);
    }

    /// Ends one continuation of a request without further deliveries of it (a stop string was met);
    /// the others go on. Unknown and ended ones are ignored.
    pub fn cancel_choice(&mut self, request: RequestId, choice: u32) {
        let Some(standing) = self.requests.get(&request) else {
            return;
        };
        let ranks = ranks_of(standing.priority, request);
        let holder = self
            .schedule
            .each_of(ranks)
            .find(|sequence| sequence.choices().any(|held| held == choice));
        let Some(holder) = holder else {
            return;
        };
        if holder.siblings.is_empty() {
            let rank = holder.rank;
            let removed = self.schedule.remove_all(rank..=rank);
            removed.iter().for_each(|sequence| self.forget(sequence));
        } else {
            // The others go on from the same prompt.
            if holder.choice == choice {
                holder.choice = holder.siblings.remove(0);
            } else {
                holder.siblings.retain(|sibling| *sibling != choice);
            }
            self.stats.running -= u32::from(holder.started);
        }
        self.close(request, 1);
    }

    /// Keeps a request's continuations out of further steps, because its reader is slow; they keep
    /// place and pages while nobody needs them.
    pub fn pause(&mut self, request: RequestId) {
        self.set_paused(request, true);
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&mut self, request: RequestId) {
        self.set_paused(request, false);
    }

    fn set_paused(&mut self, request: RequestId, paused: bool) {
        if let Some(standing) = self.requests.get(&request) {
            let ranks = ranks_of(standing.priority, request);
            let sequences = self.schedule.each_of(ranks);
            sequences.for_each(|sequence| sequence.paused = paused);
        }
    }

    /// Runs one turn: lands the oldest step in flight, then launches as many as the device will
    /// hold. `now` is the time since an origin of the caller's choice, the same for all calls.
    ///
    /// The time from one call to the next tells what the step that landed in between has cost.
    pub fn turn(&mut self, now: Duration, out: &mut Vec<Delivery>) -> Result<Turn, Lost> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        self.schedule.cost.learn(now);
        let landed = self.land(now, out)?;
        self.expire(now, out);
        let launched = self.launch(out)?;
        Ok(match landed || launched || !self.flights.is_empty() {
            true => Turn::Ran,
            false => Turn::Idle,
        })
    }

    /// The earliest deadline of all requests: when an idle engine wants its next turn.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How the engine stands.
    pub fn stats(&self) -> Stats {
        let pages = &self.schedule.pages;
        Stats {
            pages_used: len32(pages.total() - pages.available()),
            preemptions: self.schedule.preemptions,
            ..self.stats
        }
    }

    /// Compares the books with each other: every page has the holders it should have, every open
    /// choice one sequence. For tests; the error says what does not agree.
    #[doc(hidden)]
    pub fn audit(&self) -> Result<(), String> {
        self.schedule.audit()?;
        let open: u32 = self.requests.values().map(|standing| standing.open).sum();
        let choices = self
            .schedule
            .sequences()
            .map(|sequence| sequence.choices().count());
        let held = len32(choices.sum());
        if open != held {
            return Err(format!("{open} choices are open, sequences hold {held}"));
        }
        Ok(())
    }

    /// Lands the oldest step in flight. Whether there was one.
    fn land(&mut self, now: Duration, out: &mut Vec<Delivery>) -> Result<bool, Lost> {
        let Some(flight) = self.flights.pop_front() else {
            return Ok(false);
        };
        let mut candidates = std::mem::take(&mut self.candidates);
        let collected = self.backend.collect(flight.ticket, &mut candidates);
        match collected {
            Ok(()) => {
                self.failures = 0;
                if flight.of_suspects {
                    self.suspects.pop_front();
                }
                self.schedule.cost.watch(now, flight.load);
                self.stats.steps += 1;
                self.stats.prefill_tokens += u64::from(flight.load.prompt_tokens);
                self.stats.padding_tokens += u64::from(flight.load.padding);
                let mut entries = 0;
                for row in &flight.rows {
                    let first = entries;
                    entries += row.entries();
                    self.land_row(row, &candidates, first, out);
                }
            }
            Err(fault) => {
                self.ground(&flight.rows);
                self.recover(fault, &flight.rows, out)?;
            }
        }
        self.candidates = candidates;
        self.keep(flight.rows);
        Ok(true)
    }

    /// Takes what a row gave; its entries start at `first`.
    fn land_row(
        &mut self,
        row: &Planned,
        candidates: &Candidates,
        first: usize,
        out: &mut Vec<Delivery>,
    ) {
        // One that was cancelled in flight has gone.
        let Some(place) = self.schedule.place_of(row) else {
            return;
        };
        self.schedule.land(place, row.end);
        match row.asked {
            Asked::Nothing => {}
            Asked::Next => match candidates.entry(first) {
                Some(entry) => self.produce(place, entry, out),
                None => self.fail(row, "the device gave no candidates for its row", out),
            },
            Asked::Scores => {
                let scored = self.score(place, row, candidates, first, out);
                if scored.is_none() {
                    self.fail(row, "the device scored fewer tokens than it was given", out);
                }
            }
        }
    }

    /// Ends a request whose row got less than it asked for.
    fn fail(&mut self, row: &Planned, why: &str, out: &mut Vec<Delivery>) {
        self.end(row.rank.request, &Finish::Failed(why.to_owned()), out);
    }

    /// Takes the scores of some prompt tokens, and delivers them once all are there.
    fn score(
        &mut self,
        place: usize,
        row: &Planned,
        candidates: &Candidates,
        first: usize,
        out: &mut Vec<Delivery>,
    ) -> Option<()> {
        let sequence = &mut self.schedule.running[place];
        let (request, choice) = (sequence.rank.request, sequence.choice);
        let prompt = Arc::clone(&sequence.request.prompt);
        let top = sequence.request.prompt_logprobs;
        let scored = sequence.scoring.as_mut()?;
        for (offset, position) in (row.start..row.end).enumerate() {
            let entry = candidates.entry(first + offset)?;
            let target = prompt[position as usize + 1];
            entry.target?;
            scored.push(self.sampler.score(entry, target, top));
        }
        if scored.len() + 1 == prompt.len() {
            let scored = sequence.scoring.take()?;
            let event = Event::Prompt(scored);
            // Only choice 0 asked for it, and it may have been cancelled.
            if choice == 0 {
                out.push(Delivery {
                    request,
                    choice,
                    event,
                });
            }
        }
        Some(())
    }

    /// Draws the next token of a sequence, and the first tokens of the choices that fork from it.
    fn produce(&mut self, place: usize, entry: Entry<'_>, out: &mut Vec<Delivery>) {
        let leader = &mut self.schedule.running[place];
        let siblings = std::mem::take(&mut leader.siblings);
        let forks: Vec<_> = siblings
            .into_iter()
            .map(|choice| leader.fork(choice))
            .collect();
        let ended = draw(&mut self.sampler, &mut self.stats, leader, entry, out);
        for mut fork in forks {
            match draw(&mut self.sampler, &mut self.stats, &mut fork, entry, out) {
                // A fork stands after its leader, whose place stays.
                None => self.schedule.seat_beside(fork, place),
                Some(finish) => self.finish(&fork, finish, out),
            }
        }
        if let Some(finish) = ended {
            let leader = self.schedule.remove(place);
            self.finish(&leader, finish, out);
        }
    }

    /// Says of all choices of a removed sequence that they have ended.
    fn finish(&mut self, sequence: &Sequence, finish: Finish, out: &mut Vec<Delivery>) {
        let request = sequence.rank.request;
        out.extend(sequence.choices().map(|choice| Delivery {
            request,
            choice,
            event: Event::Finished(finish.clone()),
        }));
        self.forget(sequence);
        self.close(request, len32(sequence.choices().count()));
    }

    /// Takes a removed sequence out of the gauges.
    fn forget(&mut self, sequence: &Sequence) {
        if sequence.started {
            self.stats.running -= len32(sequence.choices().count());
        } else {
            self.stats.waiting -= 1;
            self.stats.waiting_tokens -= u64::from(sequence.prompt());
        }
    }

    /// Counts choices of a request that have ended; with the last the request is forgotten.
    fn close(&mut self, request: RequestId, ended: u32) {
        let Some(standing) = self.requests.get_mut(&request) else {
            return;
        };
        standing.open -= ended;
        if standing.open == 0 {
            let deadline = standing.deadline;
            self.requests.remove(&request);
            if let Some(deadline) = deadline {
                self.deadlines.remove(&(deadline, request));
            }
        }
    }

    /// Takes out all that is left of a request.
    fn dismiss(&mut self, request: RequestId) -> Vec<Sequence> {
        let Some(standing) = self.requests.remove(&request) else {
            return Vec::new();
        };
        if let Some(deadline) = standing.deadline {
            self.deadlines.remove(&(deadline, request));
        }
        let removed = self
            .schedule
            .remove_all(ranks_of(standing.priority, request));
        removed.iter().for_each(|sequence| self.forget(sequence));
        removed
    }

    /// Ends all that is left of a request, and says so.
    fn end(&mut self, request: RequestId, finish: &Finish, out: &mut Vec<Delivery>) {
        for sequence in self.dismiss(request) {
            out.extend(sequence.choices().map(|choice| Delivery {
                request,
                choice,
                event: Event::Finished(finish.clone()),
            }));
        }
    }

    fn expire(&mut self, now: Duration, out: &mut Vec<Delivery>) {
        while let Some((_, request)) = self.deadlines.first().filter(|(due, _)| *due <= now) {
            self.end(*request, &Finish::Deadline, out);
        }
    }

    /// Launches steps until the device holds as many as it can, or nobody can run. Whether any was
    /// tried.
    fn launch(&mut self, out: &mut Vec<Delivery>) -> Result<bool, Lost> {
        let mut tried = false;
        while self.flights.len() < self.backend.profile().depth.max(1) as usize {
            // Suspects run with nothing else in flight, so that they alone can be to blame.
            if !self.suspects.is_empty() && !self.flights.is_empty() {
                break;
            }
            let only = self.suspects.front().map(Vec::as_slice);
            let decodes = self.flights.iter().any(|flight| flight.load.decodes());
            self.schedule.plan(&mut self.plan, only, decodes);
            if self.plan.rows.is_empty() {
                if self.suspects.pop_front().is_some() {
                    continue;
                }
                break;
            }
            tried = true;
            match self.submit() {
                Ok(ticket) => self.fly(ticket, out),
                Err(fault) => {
                    let rows = std::mem::take(&mut self.plan.planned);
                    self.schedule.undo(&rows);
                    self.recover(fault, &rows, out)?;
                    self.keep(rows);
                    break;
                }
            }
        }
        Ok(tried)
    }

    fn submit(&mut self) -> Result<Ticket, Fault> {
        let plan = &self.plan;
        let masks: Vec<&TokenMask> = plan.masks.iter().map(|mask| &**mask).collect();
        self.backend.submit(&Step {
            copies: &plan.copies,
            tokens: &plan.tokens,
            pages: &plan.pages,
            masks: &masks,
            rows: &plan.rows,
        })
    }

    /// Takes note of a submitted step, and of those who left the queue with it.
    fn fly(&mut self, ticket: Ticket, out: &mut Vec<Delivery>) {
        let rows = self.spare.pop().unwrap_or_default();
        let rows = std::mem::replace(&mut self.plan.planned, rows);
        for row in &rows {
            self.start(row, out);
        }
        self.flights.push_back(Flight {
            ticket,
            rows,
            load: self.plan.load,
            of_suspects: !self.suspects.is_empty(),
        });
    }

    fn start(&mut self, row: &Planned, out: &mut Vec<Delivery>) {
        let Some(place) = self.schedule.place_of(row) else {
            return;
        };
        let sequence = &mut self.schedule.running[place];
        if sequence.started {
            return;
        }
        let looked_up = match sequence.scoring {
            Some(_) => 0,
            None => sequence.prompt(),
        };
        self.stats.prefix_queries += u64::from(looked_up);
        self.stats.prefix_hits += u64::from(sequence.cached);
        self.stats.waiting -= 1;
        self.stats.waiting_tokens -= u64::from(sequence.prompt());
        self.stats.running += len32(sequence.choices().count());
        sequence.started = true;
        let request = sequence.rank.request;
        let cached_tokens = sequence.cached;
        out.extend(sequence.choices().map(|choice| Delivery {
            request,
            choice,
            event: Event::Started { cached_tokens },
        }));
        if sequence.request.prompt_logprobs.is_some()
            && sequence.scoring.is_none()
            && sequence.choice == 0
        {
            // A prompt of one token has none after the first.
            let event = Event::Prompt(Vec::new());
            out.push(Delivery {
                request,
                choice: 0,
                event,
            });
        }
    }

    /// Takes back all steps in flight after one that failed: they may have read what it was to
    /// write. What they give is not looked at; a loss shows again in the next step.
    fn ground(&mut self, failed: &[Planned]) {
        self.schedule.undo(failed);
        while let Some(flight) = self.flights.pop_front() {
            self.backend
                .collect(flight.ticket, &mut self.candidates)
                .ok();
            self.schedule.undo(&flight.rows);
        }
    }

    /// Does what a fault of a step asks for.
    fn recover(
        &mut self,
        fault: Fault,
        rows: &[Planned],
        out: &mut Vec<Delivery>,
    ) -> Result<(), Lost> {
        match fault {
            Fault::Retry(cause) => {
                self.failures += 1;
                if self.failures >= TRIES {
                    return self.lose(cause, out);
                }
            }
            Fault::Reject(cause) => self.isolate(&cause, rows, out),
            Fault::Restart(cause) => return self.lose(cause, out),
        }
        Ok(())
    }

    /// Finds the row that the device rejects: each half is run apart, down to one row.
    fn isolate(&mut self, cause: &Cause, rows: &[Planned], out: &mut Vec<Delivery>) {
        self.suspects.pop_front();
        if let [row] = rows {
            let failed = Finish::Failed(Fault::Reject(cause.clone()).to_string());
            self.end(row.rank.request, &failed, out);
            return;
        }
        let (first, second) = rows.split_at(rows.len() / 2);
        for half in [second, first] {
            let ranks = half.iter().map(|row| row.rank).collect();
            self.suspects.push_front(ranks);
        }
    }

    /// Ends every request, and the engine.
    fn lose(&mut self, cause: Cause, out: &mut Vec<Delivery>) -> Result<(), Lost> {
        let lost = Lost(cause);
        let failed = Finish::Failed(lost.to_string());
        while let Some((request, _)) = self.requests.first_key_value() {
            self.end(*request, &failed, out);
        }
        self.flights.clear();
        self.suspects.clear();
        self.lost = Some(lost.clone());
        Err(lost)
    }

    /// Keeps the memory of a step that is over.
    fn keep(&mut self, mut rows: Vec<Planned>) {
        rows.clear();
        self.spare.push(rows);
    }
}

/// Draws a token, delivers it and adds it; why it is the last, if it is.
fn draw(
    sampler: &mut Sampler,
    stats: &mut Stats,
    sequence: &mut Sequence,
    entry: Entry<'_>,
    out: &mut Vec<Delivery>,
) -> Option<Finish> {
    let place = Place {
        request: &sequence.request,
        seen: &sequence.seen,
        choice: sequence.choice,
        index: sequence.produced(),
    };
    let Some(token) = sampler.pick(entry, place) else {
        let why =
            "no candidate is possible: the device gave none that is a number and may be produced";
        return Some(Finish::Failed(why.to_owned()));
    };
    let scored = sampler.score(entry, token, sequence.request.logprobs);
    out.push(Delivery {
        request: sequence.rank.request,
        choice: sequence.choice,
        event: Event::Token(scored),
    });
    stats.decode_tokens += 1;
    sequence.push(token)
}
