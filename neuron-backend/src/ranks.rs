//! One thread for each rank, in one process.
//!
//! A rank is a core with its part of the model. Its thread makes whatever the rank has on the
//! device, keeps it, and is the only one that touches it: the state `S` never leaves it. A job is
//! one closure that every rank runs; [`Ranks::begin`] hands it out and returns, [`Flight::wait`]
//! waits for all. Jobs run in the order begun, so the next step can be handed out while one runs,
//! and a rank goes from one to the next without asking anybody.
//!
//! Nobody waits for ever: a rank that panics answers, for this job and for all that follow, and
//! whoever waits says how long. A call of the runtime that hangs cannot be cancelled, though:
//! after [`Hung`] the process is to be ended.

mod mailbox;
mod places;

use std::any::Any;
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{hint, io};

use mailbox::Mailbox;
pub use places::Places;

/// How long a rank looks for the next job, and whoever waits for the answers, before they sleep.
/// Between two steps there are some ten microseconds of the engine's, and waking dozens of threads
/// takes longer than that.
const SPIN: Duration = Duration::from_micros(200);

/// How often whoever watches for a rank that fails looks.
const LOOK: Duration = Duration::from_millis(5);

/// How long ranks have to let go of a device that has failed.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Processors for each rank from which on spinning takes nothing from anybody: one for the rank,
/// one for the thread with which the runtime looks after its core, one for all else.
const SPARE: usize = 3;

/// Why the threads were not started.
#[derive(Debug, thiserror::Error)]
#[error("could not start the thread of rank {rank} of {ranks}: raise the limit of threads")]
pub struct StartError {
    /// Which.
    pub rank: usize,
    /// How many there were to be.
    pub ranks: usize,
    /// What the system said.
    pub source: io::Error,
}

/// Why a rank has no answer to a job.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Lost {
    /// It panicked, in this job or in one before.
    #[error("rank {rank} panicked: {message}")]
    Panicked {
        /// Which.
        rank: usize,
        /// What it said.
        message: String,
    },
    /// Its thread is gone.
    #[error("rank {rank} has no thread any more")]
    Gone {
        /// Which.
        rank: usize,
    },
}

/// Ranks that have not answered in time. What they are in cannot be cancelled: end the process.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("after {waited:?} there is no answer from rank {} of {ranks}", listed(.silent))]
pub struct Hung {
    /// How long was waited.
    pub waited: Duration,
    /// Which have not answered.
    pub silent: Vec<usize>,
    /// How many were asked.
    pub ranks: usize,
}

fn listed(ranks: &[usize]) -> String {
    let ranks: Vec<_> = ranks.iter().map(usize::to_string).collect();
    ranks.join(", ")
}

/// Threads that each keep a rank's state and run each job once. Dropping them lets them finish what
/// was begun, drop their states and end; after [`Hung`] they are left to themselves, and after
/// [`Ranks::distrust`] soon so.
pub struct Ranks<S> {
    jobs: Vec<Arc<Mailbox<Handed<S>>>>,
    threads: Vec<JoinHandle<()>>,
    hung: Arc<AtomicBool>,
    distrusted: bool,
    spin: Duration,
}

impl<S: 'static> Ranks<S> {
    /// Starts `count` threads, each where `places` has it, each with the state that `make` makes on
    /// it.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(
        count: usize,
        places: &Places,
        make: impl Fn(usize) -> S + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let spare = processors >= count.saturating_mul(SPARE);
        // Built up in place, so that an error ends the threads that have started.
        let mut ranks = Self {
            jobs: Vec::with_capacity(count),
            threads: Vec::with_capacity(count),
            hung: Arc::new(AtomicBool::new(false)),
            distrusted: false,
            spin: if spare { SPIN } else { Duration::ZERO },
        };
        let make = Arc::new(make);
        for rank in 0..count {
            let jobs = Arc::new(Mailbox::new());
            ranks.jobs.push(Arc::clone(&jobs));
            let (make, spin) = (Arc::clone(&make), ranks.spin);
            let place = places.of(rank);
            let thread = thread::Builder::new()
                .name(format!("rank-{rank}"))
                .spawn(move || {
                    if let Some(place) = place {
                        place.take(rank);
                    }
                    serve(rank, &*make, &Reading(&jobs), spin);
                })
                .map_err(|source| StartError {
                    rank,
                    ranks: count,
                    source,
                })?;
            ranks.threads.push(thread);
        }
        Ok(ranks)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.jobs.len()
    }

    /// Hands a job to every rank and returns at once. It is called with the rank and its state.
    pub fn begin<R: Send + 'static>(
        &mut self,
        job: impl Fn(usize, &mut S) -> R + Send + Sync + 'static,
    ) -> Flight<R> {
        let answers = Arc::new(Answers::new(self.count()));
        let job: Arc<dyn Job<S>> = Arc::new(Closure {
            job,
            answers: Arc::clone(&answers),
        });
        for (rank, jobs) in self.jobs.iter().enumerate() {
            jobs.put(Handed::new(rank, &job));
        }
        Flight {
            answers,
            hung: Arc::clone(&self.hung),
            begun: Instant::now(),
            spin: self.spin,
        }
    }

    /// The device has failed: whatever is still asked of it may hang. Dropping the ranks waits for
    /// them no longer than it takes a healthy one.
    pub fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Has every rank run a job at the same time, and waits for all of them, however long it takes.
    pub fn each<R: Send + 'static>(
        &mut self,
        job: impl Fn(usize, &mut S) -> R + Send + Sync + 'static,
    ) -> Vec<Result<R, Lost>> {
        self.begin(job).join()
    }
}

impl<S> Drop for Ranks<S> {
    fn drop(&mut self) {
        for jobs in &self.jobs {
            jobs.close();
        }
        if self.hung.load(Ordering::Acquire) {
            return;
        }
        if self.distrusted {
            let start = Instant::now();
            while !self.threads.iter().all(JoinHandle::is_finished) {
                if start.elapsed() > LETTING_GO {
                    tracing::warn!(
                        "ranks do not let go of the device: they are left to themselves"
                    );
                    return;
                }
                thread::sleep(LOOK);
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::warn!("a rank panicked as it dropped what it had");
            }
        }
    }
}

impl<S> fmt::Debug for Ranks<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranks")
            .field("count", &self.jobs.len())
            .field("spin", &self.spin)
            .finish_non_exhaustive()
    }
}

/// A job that has been begun. Dropping it forgets the answers; the job runs all the same.
#[derive(Debug)]
#[must_use = "nobody else hears of the answers"]
pub struct Flight<R> {
    answers: Arc<Answers<R>>,
    hung: Arc<AtomicBool>,
    begun: Instant,
    spin: Duration,
}

impl<R> Flight<R> {
    /// Waits for the answer of every rank, in their order. When it returns them nobody has the job
    /// any more, and whatever it owned is dropped.
    ///
    /// # Errors
    /// A rank has not answered `within` this time from now. From then on dropping the ranks does
    /// not wait for them.
    pub fn wait(&self, within: Duration) -> Result<Vec<Result<R, Lost>>, Hung> {
        let start = Instant::now();
        if self.answers.wait(self.spin, start.checked_add(within)) {
            return Ok(self.answers.take());
        }
        Err(self.hung_since(start))
    }

    /// The same, however long it takes, but only this long once a rank has failed, as `failed` tells
    /// by its answer: the others may then wait for it for ever.
    ///
    /// # Errors
    /// A rank has failed, and others have not answered. [`Flight::given`] has what it said.
    pub fn wait_unless(
        &self,
        failed: impl Fn(&R) -> bool,
        within: Duration,
    ) -> Result<Vec<Result<R, Lost>>, Hung> {
        let start = Instant::now();
        let mut deadline = None;
        while !self
            .answers
            .wait(Duration::ZERO, Some(Instant::now() + LOOK))
        {
            if deadline.is_none() && self.answers.any(&failed) {
                deadline = Some(Instant::now() + within);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(self.hung_since(start));
            }
        }
        Ok(self.answers.take())
    }

    fn hung_since(&self, start: Instant) -> Hung {
        self.hung.store(true, Ordering::Release);
        Hung {
            waited: start.elapsed(),
            silent: self.answers.silent(),
            ranks: self.answers.slots.len(),
        }
    }

    /// What has been answered of a job that has hung: each rank that did, and its answer.
    pub fn given(&self) -> Vec<(usize, Result<R, Lost>)> {
        self.answers.given()
    }

    /// The same, however long it takes.
    pub fn join(&self) -> Vec<Result<R, Lost>> {
        self.answers.wait(self.spin, None);
        self.answers.take()
    }

    /// Whether every rank has answered.
    pub fn is_finished(&self) -> bool {
        self.answers.finished()
    }

    /// When it was begun.
    pub fn begun(&self) -> Instant {
        self.begun
    }
}

/// Where one rank answers a job.
type Slot<R> = Mutex<Option<Result<R, Lost>>>;

/// Where the ranks answer a job.
#[derive(Debug)]
struct Answers<R> {
    slots: Box<[Slot<R>]>,
    /// Ranks that have not let go of the job.
    left: AtomicUsize,
    /// Held by the last of them as it wakes whoever waits.
    last: Mutex<()>,
    done: Condvar,
}

impl<R> Answers<R> {
    fn new(ranks: usize) -> Self {
        Self {
            slots: (0..ranks).map(|_| Mutex::new(None)).collect(),
            left: AtomicUsize::new(ranks),
            last: Mutex::new(()),
            done: Condvar::new(),
        }
    }

    fn finished(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    fn give(&self, rank: usize, answer: Result<R, Lost>) {
        *held(&self.slots[rank]) = Some(answer);
    }

    fn let_go(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _last = held(&self.last);
            self.done.notify_all();
        }
    }

    /// Whether all ranks have let go by `deadline`.
    fn wait(&self, spin: Duration, deadline: Option<Instant>) -> bool {
        if looked(spin, || self.finished()) {
            return true;
        }
        let mut last = held(&self.last);
        while !self.finished() {
            let Some(deadline) = deadline else {
                last = self.done.wait(last).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.done.wait_timeout(last, left);
            last = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The answers, when all have been given.
    fn take(&self) -> Vec<Result<R, Lost>> {
        let slots = self.slots.iter().enumerate();
        slots
            .map(|(rank, slot)| held(slot).take().unwrap_or(Err(Lost::Gone { rank })))
            .collect()
    }

    /// Whether a rank has lost the job, or answered what `failed` is true of.
    fn any(&self, failed: impl Fn(&R) -> bool) -> bool {
        self.slots.iter().any(|slot| match &*held(slot) {
            Some(Ok(answer)) => failed(answer),
            Some(Err(_)) => true,
            None => false,
        })
    }

    fn given(&self) -> Vec<(usize, Result<R, Lost>)> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(rank, slot)| Some((rank, held(slot).take()?)))
            .collect()
    }

    fn silent(&self) -> Vec<usize> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(rank, slot)| held(slot).is_none().then_some(rank))
            .collect()
    }
}

/// Locks what is consistent whatever its holder died of.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks for `spin` whether something is there.
fn looked(spin: Duration, there: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        // A look at the clock costs more than many at what is waited for.
        for _ in 0..64 {
            if there() {
                return true;
            }
            hint::spin_loop();
        }
        if start.elapsed() >= spin {
            return false;
        }
    }
}

/// Lets go of a job when dropped, even if what the job owned panics as it is dropped.
struct LettingGo<R>(Arc<Answers<R>>);

impl<R> Drop for LettingGo<R> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// A job on its way to a rank. One that is dropped without having run is answered all the same, so
/// that nobody waits for it.
struct Handed<S> {
    rank: usize,
    job: Option<Arc<dyn Job<S>>>,
}

impl<S> Handed<S> {
    fn new(rank: usize, job: &Arc<dyn Job<S>>) -> Self {
        let job = Some(Arc::clone(job));
        Self { rank, job }
    }

    fn run(mut self, state: &mut S) -> Result<(), Lost> {
        let rank = self.rank;
        match self.job.take() {
            Some(job) => job.run(rank, state),
            None => Ok(()),
        }
    }

    fn refuse(mut self, lost: Lost) {
        if let Some(job) = self.job.take() {
            job.refuse(self.rank, lost);
        }
    }
}

impl<S> Drop for Handed<S> {
    fn drop(&mut self) {
        let rank = self.rank;
        if let Some(job) = self.job.take() {
            job.refuse(rank, Lost::Gone { rank });
        }
    }
}

/// What a rank's thread does with a job, whatever its answer is.
trait Job<S>: Send + Sync {
    /// Runs it and answers, as the last thing that is done with it. An error if it panicked.
    fn run(self: Arc<Self>, rank: usize, state: &mut S) -> Result<(), Lost>;

    /// Answers that it will not be run.
    fn refuse(self: Arc<Self>, rank: usize, lost: Lost);
}

struct Closure<F, R> {
    job: F,
    answers: Arc<Answers<R>>,
}

impl<F, R> Closure<F, R> {
    fn answer(self: Arc<Self>, rank: usize, answer: Result<R, Lost>) {
        self.answers.give(rank, answer);
        // Whoever waits shall find that nobody has the job any more.
        let _last = LettingGo(Arc::clone(&self.answers));
        drop(self);
    }
}

impl<S, F, R> Job<S> for Closure<F, R>
where
    F: Fn(usize, &mut S) -> R + Send + Sync,
    R: Send,
{
    fn run(self: Arc<Self>, rank: usize, state: &mut S) -> Result<(), Lost> {
        let answer = catch_unwind(AssertUnwindSafe(|| (self.job)(rank, state)))
            .map_err(|panic| panicked(rank, &*panic));
        let outcome = answer.as_ref().map(|_| ()).map_err(Lost::clone);
        self.answer(rank, answer);
        outcome
    }

    fn refuse(self: Arc<Self>, rank: usize, lost: Lost) {
        self.answer(rank, Err(lost));
    }
}

fn panicked(rank: usize, panic: &(dyn Any + Send)) -> Lost {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word");
    Lost::Panicked {
        rank,
        message: message.to_owned(),
    }
}

/// A rank that reads its jobs. However it ends, nobody waits for it afterwards.
struct Reading<'a, S>(&'a Mailbox<Handed<S>>);

impl<S> Drop for Reading<'_, S> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// A rank's life: it makes its state, runs jobs until there are no more, and drops its state.
fn serve<S>(rank: usize, make: &dyn Fn(usize) -> S, jobs: &Reading<'_, S>, spin: Duration) {
    let made = catch_unwind(AssertUnwindSafe(|| make(rank)));
    // A state that saw a panic is not used again, but kept: nobody asked for its end.
    let (mut state, mut lost) = match made {
        Ok(state) => (Some(state), None),
        Err(panic) => (None, Some(panicked(rank, &*panic))),
    };
    while let Some(job) = jobs.0.next(spin) {
        match (&mut state, &lost) {
            (Some(state), None) => lost = job.run(state).err(),
            (_, Some(lost)) => job.refuse(lost.clone()),
            (None, None) => drop(job),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Barrier;
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn ranks<S: 'static>(
        count: usize,
        make: impl Fn(usize) -> S + Send + Sync + 'static,
    ) -> Ranks<S> {
        Ranks::start(count, &Places::anywhere(), make).expect("a few threads")
    }

    #[test]
    fn every_rank_answers_in_its_place() {
        for count in [0, 1, 4, 32] {
            let mut ranks = ranks(count, |_| ());
            for round in 0..20 {
                let answers = ranks.each(move |rank, ()| rank * 100 + round);
                let expected: Vec<_> = (0..count).map(|rank| Ok(rank * 100 + round)).collect();
                assert_eq!(answers, expected);
            }
        }
    }

    #[test]
    fn ranks_run_a_job_at_the_same_time() {
        let mut ranks = ranks(5, |_| ());
        let met = Barrier::new(5);
        // Each waits for the others.
        let leaders = ranks.each(move |_, ()| met.wait().is_leader());
        assert_eq!(
            leaders
                .into_iter()
                .filter(|leader| *leader == Ok(true))
                .count(),
            1
        );
    }

    #[test]
    fn a_state_stays_with_its_rank_and_need_not_be_sendable() {
        let mut ranks = ranks(3, |rank| Rc::new(RefCell::new(vec![rank])));
        ranks.each(|rank, state| state.borrow_mut().push(rank + 10));
        let states = ranks.each(|_, state| state.borrow().clone());
        assert_eq!(states, [Ok(vec![0, 10]), Ok(vec![1, 11]), Ok(vec![2, 12])]);
    }

    #[test]
    fn states_are_dropped_where_they_were_made_when_the_ranks_are() {
        struct State(thread::ThreadId, mpsc::Sender<bool>);
        impl Drop for State {
            fn drop(&mut self) {
                let here = thread::current().id() == self.0;
                self.1.send(here).expect("the test listens");
            }
        }
        let (sender, dropped) = mpsc::channel();
        let ranks = ranks(2, move |_| State(thread::current().id(), sender.clone()));
        drop(ranks);
        assert_eq!(dropped.iter().collect::<Vec<_>>(), [true, true]);
    }

    #[test]
    fn jobs_run_in_the_order_begun_and_their_answers_can_be_taken_later() {
        let mut ranks = ranks(4, |_| Vec::new());
        let push = |number| {
            move |_, seen: &mut Vec<u32>| {
                seen.push(number);
                seen.clone()
            }
        };
        let first = ranks.begin(push(1));
        let second = ranks.begin(push(2));
        let second = second.wait(SOON).expect("in time");
        let first = first.wait(SOON).expect("in time");
        assert!(first.iter().all(|seen| *seen == Ok(vec![1])), "{first:?}");
        assert!(
            second.iter().all(|seen| *seen == Ok(vec![1, 2])),
            "{second:?}"
        );
    }

    #[test]
    fn nobody_has_a_job_any_more_once_all_have_answered() {
        let mut ranks = ranks(8, |_| ());
        for _ in 0..200 {
            let shared = Arc::new(());
            let job = Arc::clone(&shared);
            ranks.each(move |_, ()| assert!(Arc::strong_count(&job) > 0));
            assert_eq!(Arc::strong_count(&shared), 1);
        }
    }

    #[test]
    fn a_panic_is_an_answer_and_the_rank_gives_no_other_again() {
        let mut ranks = ranks(3, |_| ());
        let answers = ranks.each(|rank, ()| assert!(rank != 1, "page {} is gone", 7));
        let lost = answers[1].as_ref().expect_err("it panicked");
        assert_eq!(lost.to_string(), "rank 1 panicked: page 7 is gone");
        assert!(answers[0].is_ok() && answers[2].is_ok());
        let answers = ranks.each(|_, ()| ());
        assert!(answers[0].is_ok() && answers[2].is_ok());
        assert!(matches!(&answers[1], Err(Lost::Panicked { rank: 1, .. })));
    }

    #[test]
    fn a_thread_that_dies_leaves_nobody_waiting() {
        /// Panics where no job does: as the rank lets go of a job.
        struct Mine(thread::ThreadId);
        impl Drop for Mine {
            fn drop(&mut self) {
                assert_eq!(thread::current().id(), self.0, "dropped by a rank");
            }
        }
        let mut ranks = ranks(1, |_| ());
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let mine = Mine(thread::current().id());
        let first = ranks.begin(move |_, ()| {
            let _mine = &mine;
            // Until all jobs are in the queue.
            held.lock()
                .expect("nobody else has it")
                .recv()
                .expect("released");
        });
        let second = ranks.begin(|_, ()| ());
        release.send(()).expect("it waits");
        // What the job owned is dropped by the rank, or by nobody but the flight.
        assert_eq!(first.wait(SOON).expect("in time"), [Ok(())]);
        assert_eq!(
            second.wait(SOON).expect("in time"),
            [Err(Lost::Gone { rank: 0 })]
        );
        let third = ranks.begin(|_, ()| ());
        assert_eq!(
            third.wait(SOON).expect("in time"),
            [Err(Lost::Gone { rank: 0 })]
        );
    }

    #[test]
    fn a_rank_that_cannot_make_its_state_answers_every_job_with_why() {
        let mut ranks = ranks(2, |rank| assert_eq!(rank, 0, "no core"));
        for _ in 0..2 {
            let answers = ranks.each(|_, ()| ());
            assert!(answers[0].is_ok());
            assert!(matches!(&answers[1], Err(Lost::Panicked { rank: 1, .. })));
        }
    }

    #[test]
    fn what_one_rank_failed_of_is_told_though_others_wait_for_it() {
        let mut ranks = ranks(2, |_| ());
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let flight = ranks.begin(move |rank, ()| match rank {
            0 => super::held(&held).recv().map_err(|_| "released"),
            _ => Err("broken"),
        });
        let hung = flight.wait_unless(Result::is_err, Duration::from_millis(50));
        let silent = hung.expect_err("one waits").silent;
        assert_eq!(silent, [0]);
        assert_eq!(flight.given(), [(1, Ok(Err("broken")))]);
        drop(ranks);
        drop(release);
    }

    #[test]
    fn ranks_that_are_well_are_waited_for_however_long_they_take() {
        let mut ranks = ranks(2, |_| ());
        let flight = ranks.begin(|rank, ()| {
            thread::sleep(Duration::from_millis(20));
            Ok::<_, ()>(rank)
        });
        let answers = flight.wait_unless(Result::is_err, Duration::ZERO);
        assert_eq!(answers.expect("none failed"), [Ok(Ok(0)), Ok(Ok(1))]);
    }

    #[test]
    fn a_hung_rank_is_named_and_dropping_does_not_wait_for_it() {
        let mut ranks = ranks(3, |_| ());
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let flight = ranks.begin(move |rank, ()| {
            if rank == 2 {
                // Ends when the test does.
                let _ = held.lock().map(|held| held.recv());
            }
        });
        let hung = flight
            .wait(Duration::from_millis(50))
            .expect_err("rank 2 hangs");
        assert!(hung.silent.contains(&2), "{hung}");
        assert_eq!(hung.ranks, 3);
        drop(ranks);
        drop(release);
    }

    #[test]
    fn an_error_of_a_rank_is_its_answer() {
        let mut ranks = ranks(2, |_| ());
        let answers = ranks.each(|rank, ()| if rank == 0 { Ok(()) } else { Err("no memory") });
        assert_eq!(answers, [Ok(Ok(())), Ok(Err("no memory"))]);
    }
}
