//! The device as the engine sees it: steps in, candidates out.

use engine::{Backend, Candidates, Cause, Checker, Fault, Profile, Row, Step, Ticket, Want};

use crate::candidates::{Ask, Picked};
use crate::decoder::{Forward, Piece, Work};
use crate::plan::Promise;

/// A model opened on the host's processor.
///
/// A step runs when it is collected, on the thread that collects it and the pool's workers: with
/// every core computing, nothing would be won by starting sooner.
#[derive(Debug)]
pub struct Cpu {
    profile: Profile,
    forward: Forward,
    /// The step in flight.
    flight: Option<(Ticket, Work)>,
    submitted: u64,
    checker: Checker,
    /// Scratch.
    picked: Vec<Picked>,
    _kv: Promise,
}

impl Cpu {
    pub(crate) fn new(profile: Profile, forward: Forward, kv: Promise) -> Self {
        Self {
            profile,
            forward,
            flight: None,
            submitted: 0,
            checker: Checker::default(),
            picked: Vec::new(),
            _kv: kv,
        }
    }
}

impl Backend for Cpu {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, Fault> {
        if let Some((Ticket(ticket), _)) = &self.flight {
            let why = format!("step {ticket} is in flight and only one may be: collect it first");
            return Err(reject(why));
        }
        self.checker.check(step, &self.profile)?;
        // Copies only concern pages, so they may be done now, in order, before the rows run.
        self.forward.cache.copy(step.copies);
        self.submitted += 1;
        self.flight = Some((Ticket(self.submitted), work(step, &self.profile)));
        Ok(Ticket(self.submitted))
    }

    fn collect(&mut self, ticket: Ticket, out: &mut Candidates) -> Result<(), Fault> {
        out.clear();
        let work = match self.flight.take_if(|(flying, _)| *flying == ticket) {
            Some((_, work)) => work,
            None => return Err(reject(format!("step {} is not in flight", ticket.0))),
        };
        self.forward.run(&work, &mut self.picked);
        if let Some(entry) = self.picked.iter().position(|picked| !picked.is_sound()) {
            let why = format!("the logits of entry {entry} are no numbers: the weights are broken");
            return Err(Fault::Restart(Cause(why)));
        }
        self.picked.iter().for_each(|picked| picked.push(out));
        Ok(())
    }
}

fn reject(why: String) -> Fault {
    Fault::Reject(Cause(why))
}

/// A checked step as the forward pass takes it: the tokens of all rows one after the other.
fn work(step: &Step<'_>, profile: &Profile) -> Work {
    let mut work = Work {
        masks: step.masks.iter().map(|mask| (*mask).clone()).collect(),
        ..Work::default()
    };
    for row in step.rows {
        let start = work.tokens.len();
        let page = work.pages.len();
        work.tokens.extend_from_slice(step.tokens_of(row));
        work.pages.extend_from_slice(step.pages_of(row));
        let tokens = start..work.tokens.len();
        work.asks.extend(asks(step, row, tokens.clone(), profile));
        work.pieces.push(Piece {
            tokens,
            position: row.position as usize,
            pages: page..work.pages.len(),
        });
    }
    work
}

/// What `row` asks of its tokens.
fn asks(step: &Step<'_>, row: &Row, tokens: std::ops::Range<usize>, profile: &Profile) -> Vec<Ask> {
    let ask = |token, width: u32, target| Ask {
        token,
        mask: row.mask.map(|mask| mask as usize),
        width: width.min(profile.candidates) as usize,
        target,
    };
    match &row.want {
        Want::Nothing => Vec::new(),
        Want::Candidates { width } => vec![ask(tokens.end - 1, *width, None)],
        Want::EachPosition { width, targets } => {
            let targets = &step.tokens[targets.start as usize..targets.end as usize];
            let each = tokens.zip(targets);
            each.map(|(token, target)| ask(token, *width, Some(*target)))
                .collect()
        }
    }
}
