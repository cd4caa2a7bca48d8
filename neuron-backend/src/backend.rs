//! The device as the engine sees it: steps in, candidates out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Axis, Backend, Candidates, Cause, Checker, Fault, Profile, Step, Ticket};
use graph::{Bucket, Form, Head, Packed, Packer};

use crate::fault;
use crate::rank::{Ran, Rank};
use crate::ranks::{Flight, Hung, Lost, Ranks};

/// Steps in flight: while one runs, the next waits at the ranks.
const DEPTH: u32 = 2;

/// How many times the slowest of the latest steps a step may take.
const PATIENCE: u32 = 10;

/// How many steps count as the latest.
const LATEST: usize = 128;

/// How long a process with a hung device lives on, to tell its clients.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What a thread of a rank keeps: nothing, until it is opened.
pub(crate) type State = Option<Rank>;

/// A model opened on the cores of a replica.
#[derive(Debug)]
pub struct Neuron {
    profile: Profile,
    checker: Checker,
    packer: Packer,
    ranks: Ranks<State>,
    flights: VecDeque<InFlight>,
    submitted: u64,
    /// Packed steps that have landed, for their memory.
    spare: Vec<Packed>,
    watch: Watch,
    /// Why the device is not to be used any more.
    lost: Option<Cause>,
}

#[derive(Debug)]
struct InFlight {
    ticket: Ticket,
    packed: Arc<Packed>,
    flight: Flight<Ran>,
}

impl Neuron {
    /// The ranks have loaded the modules of `buckets`, in this order. A step that takes longer than
    /// `patience`, and many times as long as others, has hung.
    pub(crate) fn new(
        ranks: Ranks<State>,
        packer: Packer,
        form: &Form,
        buckets: &[Bucket],
        vocabulary: u32,
        patience: Duration,
    ) -> Self {
        Self {
            profile: profile(form, buckets, vocabulary),
            checker: Checker::default(),
            packer,
            ranks,
            flights: VecDeque::new(),
            submitted: 0,
            spare: Vec::new(),
            watch: Watch::new(patience),
            lost: None,
        }
    }

    /// What the ranks gave for a step, if all of them ran all of it.
    fn landed(&mut self, flight: &Flight<Ran>) -> Result<Vec<Vec<f32>>, Fault> {
        let begun = flight.begun().max(self.watch.landed);
        let answers = match flight.wait(self.watch.limit()) {
            Ok(answers) => answers,
            Err(hung) => return Err(hang(&hung, flight.given())),
        };
        self.watch.land(begun);
        together(answers)
    }

    /// The device is not to be used any more. A call of it may hang all the same, be it one that frees
    /// something or the process's own end: that is given time for its last words, and then aborted.
    fn lose(&mut self, cause: &Cause) {
        self.lost = Some(cause.clone());
        self.ranks.distrust();
        // What waits behind a step that failed fails or hangs too. Nobody is told of it any more.
        self.flights.clear();
        std::thread::spawn(|| {
            std::thread::sleep(LAST_WORDS);
            tracing::error!("the process does not end by itself: aborting it");
            std::process::abort();
        });
    }
}

impl Backend for Neuron {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, Fault> {
        // Whoever collected may have looked for something else.
        if let Some(cause) = &self.lost {
            return Err(Fault::Restart(cause.clone()));
        }
        if self.flights.len() >= DEPTH as usize {
            let why = format!("{DEPTH} steps are in flight, and no more may be: collect one first");
            return Err(Fault::Reject(Cause(why)));
        }
        self.checker.check(step, &self.profile)?;
        let mut packed = self.spare.pop().unwrap_or_default();
        let result = self.packer.pack(step, &mut packed);
        result.map_err(|error| Fault::Reject(Cause(error.to_string())))?;
        let packed = Arc::new(packed);
        let flight = {
            let packed = Arc::clone(&packed);
            self.ranks.begin(move |_, state| match state {
                Some(rank) => rank.run(&packed),
                None => Ran::default(),
            })
        };
        self.submitted += 1;
        self.flights.push_back(InFlight {
            ticket: Ticket(self.submitted),
            packed,
            flight,
        });
        Ok(Ticket(self.submitted))
    }

    fn collect(&mut self, ticket: Ticket, out: &mut Candidates) -> Result<(), Fault> {
        out.clear();
        let Some(oldest) = self.flights.pop_front_if(|oldest| oldest.ticket == ticket) else {
            let why = format!("step {} is not the oldest in flight", ticket.0);
            return Err(Fault::Reject(Cause(why)));
        };
        let InFlight { packed, flight, .. } = oldest;
        let given = self.landed(&flight).inspect_err(|fault| match fault {
            Fault::Restart(cause) => self.lose(cause),
            Fault::Reject(_) | Fault::Retry(_) => tracing::warn!("{fault}"),
        })?;
        drop(flight);
        let unpacked = packed.unpack(
            |launch| given.get(launch).map_or(&[][..], Vec::as_slice),
            out,
        );
        self.spare.extend(Arc::try_unwrap(packed));
        // Numbers that cannot be are this step's: the next may be well, and the device says more
        // if it is not.
        unpacked.map_err(|error| {
            tracing::warn!("the device gave what cannot be: {error}");
            Fault::Reject(Cause(error.to_string()))
        })
    }
}

/// What the modules of a bundle can run.
fn profile(form: &Form, buckets: &[Bucket], vocabulary: u32) -> Profile {
    let axis = |size: fn(Bucket) -> Option<u32>| {
        let mut sizes: Vec<_> = buckets.iter().copied().filter_map(size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    };
    let prefill = axis(|bucket| match bucket {
        Bucket::Step {
            rows,
            tokens: tokens @ 2..,
            head: Head::Last,
            ..
        } => Some(rows * tokens),
        _ => None,
    });
    let decode = axis(|bucket| match bucket {
        Bucket::Step {
            rows,
            tokens: 1,
            head: Head::Last,
            ..
        } => Some(rows),
        _ => None,
    });
    let pages = axis(|bucket| match bucket {
        Bucket::Step {
            tokens: 1, pages, ..
        } => Some(pages),
        _ => None,
    });
    let context = pages.into_iter().map(|pages| pages * form.page_tokens);
    let mut context: Vec<_> = context
        .filter(|positions| *positions < form.context)
        .collect();
    context.push(form.context);
    Profile {
        prefill: Axis::Buckets(prefill.into()),
        decode: Axis::Buckets(decode.into()),
        context: Axis::Buckets(context.into()),
        mixed: false,
        page_tokens: form.page_tokens,
        // The modules' page 0 is nobody's.
        pages: form.pages - 1,
        vocabulary,
        candidates: form.candidates,
        depth: DEPTH,
    }
}

/// Of two faults the one that asks for more.
fn graver(one: Option<Fault>, other: Fault) -> Option<Fault> {
    let gravity = |fault: &Fault| match fault {
        Fault::Retry(_) => 0,
        Fault::Reject(_) => 1,
        Fault::Restart(_) => 2,
    };
    match one {
        Some(one) if gravity(&one) >= gravity(&other) => Some(one),
        _ => Some(other),
    }
}

fn gone(lost: &Lost) -> Fault {
    Fault::Restart(Cause(lost.to_string()))
}

/// What ranks have given together. Ranks that did not run the same launches are out of step: from
/// then on each would compute with what another has from another step.
fn together(answers: Vec<Result<Ran, Lost>>) -> Result<Vec<Vec<f32>>, Fault> {
    let mut given = Vec::new();
    let mut worst = None;
    let mut launches = None;
    let mut apart = false;
    for (rank, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(ran) => {
                apart |= *launches.get_or_insert(ran.launches) != ran.launches;
                match ran.error {
                    Some(error) => worst = graver(worst, fault::of(&error)),
                    // Only the first rank gives anything.
                    None if rank == 0 => given = ran.given,
                    None => {}
                }
            }
            Err(lost) => worst = graver(worst, gone(&lost)),
        }
    }
    match worst {
        Some(Fault::Reject(cause) | Fault::Retry(cause)) if apart => {
            let why = format!("only some ranks ran what all were to run: {cause}");
            Err(Fault::Restart(Cause(why)))
        }
        Some(worst) => Err(worst),
        None => Ok(given),
    }
}

/// Ranks that have not answered. If one has failed, the others have waited for it, and what it said is
/// what is wrong.
fn hang(hung: &Hung, given: Vec<(usize, Result<Ran, Lost>)>) -> Fault {
    let said = given.into_iter().filter_map(|(rank, answer)| match answer {
        Ok(ran) => Some(format!("; rank {rank}: {}", fault::cause(&ran.error?))),
        Err(lost) => Some(format!("; {lost}")),
    });
    let why = format!("{hung}{}", said.collect::<String>());
    tracing::error!("{why}. The threads: {}", crate::threads::describe());
    Fault::Restart(Cause(why))
}

/// How long steps take, and from when on one has hung.
#[derive(Debug)]
struct Watch {
    /// The least that a step may take.
    patience: Duration,
    latest: VecDeque<Duration>,
    /// When the last step landed.
    landed: Instant,
}

impl Watch {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            latest: VecDeque::with_capacity(LATEST),
            landed: Instant::now(),
        }
    }

    fn limit(&self) -> Duration {
        let slowest = self.latest.iter().max().copied().unwrap_or_default();
        self.patience.max(slowest * PATIENCE)
    }

    /// A step has landed that ran from `begun` on.
    fn land(&mut self, begun: Instant) {
        if self.latest.len() == LATEST {
            self.latest.pop_front();
        }
        self.landed = Instant::now();
        self.latest.push_back(self.landed - begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nrt::{NrtError, Status};

    fn ran(launches: usize, status: Option<Status>) -> Result<Ran, Lost> {
        let error = status.map(|status| NrtError {
            operation: "nrt_execute",
            status,
            detail: String::new(),
        });
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let given = (0..launches).map(|launch| vec![launch as f32]).collect();
        Ok(Ran {
            launches,
            given,
            error,
        })
    }

    #[test]
    fn what_the_first_rank_gave_counts_if_all_ranks_ran() {
        let given = together(vec![ran(2, None), ran(2, None)]);
        assert_eq!(given, Ok(vec![vec![0.0], vec![1.0]]));
    }

    #[test]
    fn ranks_that_ran_the_same_are_as_good_as_before() {
        let (bad, busy) = (Status::EXEC_OOB, Status::QUEUE_FULL);
        let rejected = together(vec![ran(2, None), ran(2, Some(bad))]);
        assert!(matches!(rejected, Err(Fault::Reject(_))), "{rejected:?}");
        let passed = together(vec![ran(1, Some(busy)), ran(1, Some(busy))]);
        assert!(matches!(passed, Err(Fault::Retry(_))), "{passed:?}");
        let graver = together(vec![ran(1, Some(busy)), ran(1, Some(Status::TIMEOUT))]);
        assert!(matches!(graver, Err(Fault::Restart(_))), "{graver:?}");
    }

    #[test]
    fn ranks_that_are_out_of_step_are_lost() {
        for status in [Status::QUEUE_FULL, Status::EXEC_BAD_INPUT] {
            let apart = together(vec![ran(2, None), ran(1, Some(status))]);
            let Err(Fault::Restart(cause)) = apart else {
                panic!("{apart:?}");
            };
            assert!(cause.to_string().contains("only some ranks"), "{cause}");
        }
    }

    #[test]
    fn a_rank_that_hangs_is_told_with_what_another_said() {
        let hung = Hung {
            waited: Duration::from_secs(3),
            silent: vec![0],
            ranks: 2,
        };
        let fault = hang(&hung, vec![(1, ran(0, Some(Status::EXEC_HW_ERR_NC_UE)))]);
        let text = fault.to_string();
        for part in [
            "no answer from rank 0 of 2",
            "rank 1: ",
            "(1202)",
            "replace it",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
