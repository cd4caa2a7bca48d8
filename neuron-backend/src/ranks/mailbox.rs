//! The jobs that wait for one rank: cheap to put into while the rank is busy, and one wake while it
//! sleeps. (The standard library's channel yields the processor some times before it sleeps, which
//! costs more than all else where ranks share processors.)

use std::collections::VecDeque;
use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Letters in the order they were put in, for one reader.
pub(super) struct Mailbox<T> {
    inside: Mutex<Inside<T>>,
    /// Whether there may be something to see inside: looked at by a reader that spins.
    news: AtomicBool,
}

struct Inside<T> {
    letters: VecDeque<T>,
    open: bool,
    /// The reader, while it sleeps or is about to.
    asleep: Option<Thread>,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        Self {
            inside: Mutex::new(Inside {
                letters: VecDeque::new(),
                open: true,
                asleep: None,
            }),
            news: AtomicBool::new(false),
        }
    }

    /// Puts a letter in. One for a closed box is dropped.
    pub(super) fn put(&self, letter: T) {
        let mut inside = self.inside();
        if !inside.open {
            drop(inside);
            return;
        }
        inside.letters.push_back(letter);
        self.tell(inside);
    }

    /// No more letters come; the reader reads those that are there.
    pub(super) fn close(&self) {
        let mut inside = self.inside();
        inside.open = false;
        self.tell(inside);
    }

    /// Nobody reads any more: the letters that are there are dropped, and all to come.
    pub(super) fn abandon(&self) {
        let mut inside = self.inside();
        inside.open = false;
        let letters = std::mem::take(&mut inside.letters);
        drop(inside);
        drop(letters);
    }

    /// Waits for the next letter, awake for `spin` and then asleep; `None` when none will come.
    pub(super) fn next(&self, spin: Duration) -> Option<T> {
        let start = Instant::now();
        loop {
            let mut inside = self.inside();
            if let Some(letter) = inside.letters.pop_front() {
                inside.asleep = None;
                return Some(letter);
            }
            if !inside.open {
                return None;
            }
            if start.elapsed() < spin {
                self.news.store(false, Ordering::Relaxed);
                drop(inside);
                self.look();
            } else {
                inside.asleep = Some(thread::current());
                drop(inside);
                thread::park();
            }
        }
    }

    /// Looks for a while whether there is news. A look at the clock costs more than many of these.
    fn look(&self) {
        for _ in 0..64 {
            if self.news.load(Ordering::Relaxed) {
                return;
            }
            hint::spin_loop();
        }
    }

    fn tell(&self, mut inside: MutexGuard<'_, Inside<T>>) {
        let asleep = inside.asleep.take();
        self.news.store(true, Ordering::Relaxed);
        drop(inside);
        if let Some(reader) = asleep {
            reader.unpark();
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside<T>> {
        // Nothing panics while it is locked.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn letters_come_in_order_whether_the_reader_sleeps_or_spins() {
        for spin in [Duration::ZERO, Duration::from_secs(1)] {
            let mailbox = Arc::new(Mailbox::new());
            let reader = {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    std::iter::from_fn(|| mailbox.next(spin)).collect::<Vec<u32>>()
                })
            };
            for letter in 0..10_000 {
                mailbox.put(letter);
                if letter % 100 == 0 {
                    thread::yield_now();
                }
            }
            mailbox.close();
            let read = reader.join().expect("it reads");
            assert!(read.into_iter().eq(0..10_000));
        }
    }

    #[test]
    fn what_nobody_will_read_is_dropped() {
        let letter = Arc::new(());
        let mailbox = Mailbox::new();
        mailbox.put(Arc::clone(&letter));
        mailbox.abandon();
        mailbox.put(Arc::clone(&letter));
        assert_eq!(Arc::strong_count(&letter), 1);
        assert_eq!(mailbox.next(Duration::ZERO), None);
    }
}
