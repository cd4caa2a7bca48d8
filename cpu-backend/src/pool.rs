//! Worker threads that share out the tasks of one job at a time: the second of the two places of
//! this crate that are unsafe, because a job borrows from the stack of whoever runs it.

#![expect(
    unsafe_code,
    reason = "threads that outlive a job borrow what it borrows while it runs"
)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};
use std::{hint, io, thread};

/// How long a worker looks for the next job before it sleeps. Within a step jobs follow each other
/// in microseconds, and waking a thread takes longer than most jobs; an idle server costs nothing.
const SPIN: Duration = Duration::from_micros(200);

/// Set in [`Shared::state`] while workers may join the job.
const OPEN: u64 = 1 << 31;

/// One generation of jobs, in [`Shared::state`] above [`OPEN`] and the count of workers inside.
const GENERATION: u64 = 1 << 32;

/// A job's tasks: called once with the worker and each task's number.
type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The thread that runs a job and the workers that help it. Dropping it ends the workers.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

struct Worker {
    handle: Option<JoinHandle<()>>,
    thread: Thread,
}

struct Shared {
    /// The generation of the job, whether it is open, and how many workers are inside.
    state: AtomicU64,
    /// The job; written only while it is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    /// For each worker whether it sleeps or is about to.
    asleep: Box<[AtomicBool]>,
    /// Whether the workers shall end.
    ended: AtomicBool,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    work: &'static Work<'static>,
}

// SAFETY: `job` is the only field that is not `Sync` by itself. It is written by the one thread
// that has `&mut Pool`, while the job is closed and nobody is inside; workers read it only inside.
// What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; a reference to something `Sync` may be sent.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads`, the caller's own counted among them.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            ended: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        // Built up in place, so that an error ends the threads that have started.
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(workers),
        };
        for index in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new()
                .name(format!("cpu-{}", index + 1))
                .spawn(move || shared.serve(index))?;
            pool.workers.push(Worker {
                thread: handle.thread().clone(),
                handle: Some(handle),
            });
        }
        Ok(pool)
    }

    /// How many threads run a job, the caller's own counted.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(worker, task)` for each task below `tasks`, on whichever worker comes first, and
    /// returns when all are done. The caller is worker 0.
    pub(crate) fn run(&mut self, tasks: usize, work: &Work<'_>) {
        if self.workers.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(|task| work(0, task));
        }
        // SAFETY: only the lifetime changes. Workers use the reference inside the job alone, and
        // `Closing` is dropped before this function ends, by return or by panic, which closes the
        // job and waits until nobody is inside.
        let work = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        let shared = &*self.shared;
        // SAFETY: `&mut self` makes this the only thread that runs a job, and the last one was
        // closed and left by all when its `Closing` dropped: nobody reads the cell now.
        unsafe { *shared.job.get() = Some(Job { tasks, work }) };
        shared.next.store(0, Ordering::Relaxed);
        let generation = shared.state.load(Ordering::Relaxed) / GENERATION + 1;
        let closing = Closing(shared);
        shared
            .state
            .store((generation * GENERATION) | OPEN, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        shared.take_tasks(0, tasks, work);
        drop(closing);
        let panic = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Cuts `data` into chunks of `size` (the last may be shorter) and calls
    /// `work(worker, index, chunk)` for each.
    pub(crate) fn for_each_chunk<T: Send>(
        &mut self,
        data: &mut [T],
        size: usize,
        work: &(dyn Fn(usize, usize, &mut [T]) + Sync),
    ) {
        let length = data.len();
        let base = Base(data.as_mut_ptr());
        self.run(length.div_ceil(size), &|worker, index| {
            let start = index * size;
            // SAFETY: `start < length`, because `index` is below the number of chunks, so the chunk
            // lies within `data`; each index is called once, so no two chunks overlap; `data` stays
            // mutably borrowed until `run` returns; `T: Send` allows another thread to write it.
            let chunk =
                unsafe { std::slice::from_raw_parts_mut(base.at(start), size.min(length - start)) };
            work(worker, index, chunk);
        });
    }
}

/// The start of a slice that is cut into chunks.
struct Base<T>(*mut T);

impl<T> Base<T> {
    /// The address `offset` elements on; only made here, read and written by the caller.
    fn at(&self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

// SAFETY: it is an address; what is done with it is accounted for where it is used.
unsafe impl<T: Send> Sync for Base<T> {}

/// Closes a job when dropped, and waits for the workers inside.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let inside = || shared.state.load(Ordering::Acquire) & (OPEN - 1) > 0;
        let start = Instant::now();
        while inside() {
            // A worker that lost its core needs ours more than we do.
            if start.elapsed() > SPIN {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(generation) = self.next_generation(seen, index) {
            seen = generation;
            if !self.enter(generation) {
                continue;
            }
            // SAFETY: this worker is inside, so the job is not written until it has left.
            if let Some(Job { tasks, work }) = unsafe { *self.job.get() } {
                let done = catch_unwind(AssertUnwindSafe(|| {
                    self.take_tasks(index + 1, tasks, work);
                }));
                if let Err(panic) = done {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a generation other than `seen`, awake for a while and then asleep; `None` when the
    /// pool ends.
    fn next_generation(&self, seen: u64, index: usize) -> Option<u64> {
        let mut start = Instant::now();
        loop {
            // A look at the clock costs more than many at the state.
            for _ in 0..64 {
                if self.ended.load(Ordering::Relaxed) {
                    return None;
                }
                let generation = self.state.load(Ordering::Relaxed) / GENERATION;
                if generation != seen {
                    return Some(generation);
                }
                hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                self.sleep(seen, index);
                start = Instant::now();
            }
        }
    }

    /// Sleeps until woken, unless there is something to do already. The flag is set before the last
    /// look, and a job is opened before the flags are read, so one of the two sees the other.
    fn sleep(&self, seen: u64, index: usize) {
        let asleep = &self.asleep[index];
        asleep.store(true, Ordering::SeqCst);
        let idle = || {
            asleep.load(Ordering::SeqCst)
                && !self.ended.load(Ordering::SeqCst)
                && self.state.load(Ordering::SeqCst) / GENERATION == seen
        };
        while idle() {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }

    /// Joins the job of `generation`, unless it is closed.
    fn enter(&self, generation: u64) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        while state / GENERATION == generation && state & OPEN != 0 {
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Runs tasks until none is left.
    fn take_tasks(&self, worker: usize, tasks: usize, work: &Work<'_>) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(worker, task);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker catches what its tasks panic with, so it has nothing to tell.
                let _ = handle.join();
            }
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 3, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|worker, task| {
                    assert!(worker < threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                let ran = counts.iter().map(|count| count.load(Ordering::Relaxed));
                assert!(ran.into_iter().all(|count| count == 1), "{threads} {tasks}");
            }
        }
    }

    #[test]
    fn chunks_cover_the_data() {
        let mut pool = Pool::new(3).unwrap();
        let mut data = vec![0; 103];
        for round in 1..200 {
            pool.for_each_chunk(&mut data, 10, &|_, index, chunk| {
                assert_eq!(chunk.len(), if index == 10 { 3 } else { 10 });
                chunk.iter_mut().for_each(|value| *value += index);
            });
            let sums = (0..103).map(|at| at / 10 * round);
            assert!(data.iter().copied().eq(sums));
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            thread::sleep(SPIN * 5);
            // Each task waits for the other, so both threads must have come.
            let met = AtomicUsize::new(0);
            pool.run(2, &|_, _| {
                met.fetch_add(1, Ordering::SeqCst);
                while met.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2).unwrap();
        for panicking in 0..2 {
            let run = catch_unwind(AssertUnwindSafe(|| {
                pool.run(2, &|_, task| assert_ne!(task, panicking, "task {task}"));
            }));
            assert!(run.is_err());
        }
        pool.run(2, &|_, _| {});
    }
}
