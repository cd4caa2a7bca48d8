//! The thread that turns an engine: requests come in through a mailbox, what happens to each goes
//! out through a bounded channel of its own. It never waits for a client.
//!
//! A reader that falls behind has its request paused until it has caught up. What must never be
//! lost (cancel, resume, end) does not go through the mailbox but through a list that is bounded by
//! the requests in flight.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use engine::{
    Backend, Cause, Delivery, Engine, Event, Finish, Limits, Lost, Refused, Request, RequestId,
    Stats, Turn,
};
use tokio::sync::{mpsc, oneshot};

use crate::generation::{OURS, Refusal};
use crate::health::Pulse;
use crate::metrics::{ChoiceTimes, Ended, ModelMetrics};

/// Requests that may wait for the thread to look at them; further callers wait in turn.
const MAILBOX: usize = 256;

/// Events that may wait for a reader before its request is paused.
const AHEAD: usize = 64;

/// Events a choice can still have after its request was paused: what two steps in flight bring,
/// and its end.
const STILL_COMING: usize = 8;

/// Starts the thread.
///
/// # Errors
/// The host has no room for a thread.
pub(crate) fn start<B: Backend + 'static>(
    backend: B,
    limits: Limits,
    secret: [u8; 16],
    metrics: ModelMetrics,
    pulse: Arc<Pulse>,
) -> std::io::Result<Mailbox> {
    let (letters, inbox) = mpsc::channel(MAILBOX);
    let clock = Clock(Instant::now());
    let shared = Arc::new(Shared::default());
    let worker = Worker {
        engine: Engine::new(backend, limits, secret),
        clock,
        inbox,
        shared: Arc::clone(&shared),
        lines: HashMap::new(),
        out: Vec::new(),
        reported: Stats::default(),
        metrics,
        pulse,
    };
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || worker.work())?;
    let thread = thread.thread().clone();
    Ok(Mailbox {
        letters,
        shared,
        thread,
        clock,
    })
}

/// The engine's clock: the time since it started.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Duration {
        self.0.elapsed()
    }

    fn at(self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.0)
    }
}

/// The way to the thread. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    letters: mpsc::Sender<Letter>,
    shared: Arc<Shared>,
    thread: Thread,
    clock: Clock,
}

/// A request for the engine, and where its answer goes.
#[derive(Debug)]
struct Letter {
    request: Request,
    arrived: Duration,
    reply: oneshot::Sender<Result<Flight, Refused>>,
    mailbox: Mailbox,
}

#[derive(Default, Debug)]
struct Shared {
    urgent: Mutex<Vec<Urgent>>,
    /// How the thread ended.
    ended: OnceLock<Result<(), Lost>>,
    /// Whether it has let go of the device too.
    freed: AtomicBool,
    /// Told when either has come about.
    over: tokio::sync::Notify,
}

/// What must never be lost.
#[derive(Debug)]
enum Urgent {
    Cancel(RequestId),
    CancelChoice(RequestId, u32),
    Resume(RequestId),
    End(String),
}

impl Shared {
    fn urgent(&self) -> MutexGuard<'_, Vec<Urgent>> {
        // Pushing and taking leave the list whole whatever panics.
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    /// Hands `request` to the engine and waits until it is admitted or refused. It must have ended
    /// `timeout` after `arrived`.
    pub(crate) async fn admit(
        &self,
        mut request: Request,
        arrived: Instant,
        timeout: Duration,
    ) -> Result<Flight, Refusal> {
        let arrived = self.clock.at(arrived);
        request.deadline = Some(arrived + timeout);
        let (reply, answer) = oneshot::channel();
        let letter = Letter {
            request,
            arrived,
            reply,
            mailbox: self.clone(),
        };
        let sent = self.letters.send(letter).await;
        sent.map_err(|_| self.refusal())?;
        self.thread.unpark();
        let answer = answer.await.map_err(|_| self.refusal())?;
        Ok(answer?)
    }

    /// Ends every request with `why`, and then the thread.
    pub(crate) fn end(&self, why: &str) {
        self.urge(Urgent::End(why.to_owned()));
    }

    /// Waits until the thread has ended: as it was told to, or because the device is lost.
    pub(crate) async fn ended(&self) -> Result<(), Lost> {
        loop {
            let over = self.shared.over.notified();
            if let Some(ended) = self.shared.ended.get() {
                return ended.clone();
            }
            over.await;
        }
    }

    /// Waits until the thread has ended and let go of its device: what the model took is free.
    pub(crate) async fn freed(&self) {
        loop {
            let over = self.shared.over.notified();
            if self.shared.freed.load(Ordering::Acquire) {
                return;
            }
            over.await;
        }
    }

    /// Why an ended thread takes nothing on.
    fn refusal(&self) -> Refusal {
        match self.shared.ended.get() {
            Some(Err(lost)) => Refusal::Engine(Refused::Lost(lost.clone())),
            _ => Refusal::Draining,
        }
    }

    fn urge(&self, urgent: Urgent) {
        self.shared.urgent().push(urgent);
        self.thread.unpark();
    }
}

/// An admitted request. Dropping it cancels what has not ended.
#[derive(Debug)]
pub(crate) struct Flight {
    request: RequestId,
    events: mpsc::Receiver<(u32, Event)>,
    slow: Arc<AtomicBool>,
    mailbox: Mailbox,
}

impl Flight {
    /// The next thing that happened, and to which choice; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<(u32, Event)> {
        let event = self.events.recv().await;
        // Pairs with the fence in `Line::pause`: either this sees `slow`, or the thread sees the room.
        fence(Ordering::SeqCst);
        if self.events.len() <= AHEAD / 2 && self.slow.swap(false, Ordering::SeqCst) {
            self.mailbox.urge(Urgent::Resume(self.request));
        }
        event
    }

    /// Ends one choice, because its text has.
    pub(crate) fn cancel_choice(&self, choice: u32) {
        self.mailbox
            .urge(Urgent::CancelChoice(self.request, choice));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // The thread closes the channel when all choices have ended.
        if !self.events.is_closed() {
            self.mailbox.urge(Urgent::Cancel(self.request));
        }
    }
}

/// The thread's end of a flight.
#[derive(Debug)]
struct Line {
    events: mpsc::Sender<(u32, Event)>,
    slow: Arc<AtomicBool>,
    choices: Vec<ChoiceTimes>,
    open: usize,
    shape: Shape,
}

/// What the metrics say of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// When it arrived.
    pub(crate) arrived: Duration,
    /// Tokens of its prompt.
    pub(crate) prompt_tokens: usize,
    /// Tokens a choice may have.
    pub(crate) max_tokens: u32,
    /// How many choices.
    pub(crate) choices: u32,
    /// Whether it is a client's: what the server asks itself is not measured.
    pub(crate) measured: bool,
}

impl Line {
    /// Ends a choice; whether it was open.
    fn close(&mut self, choice: u32) -> bool {
        let closed = (self.choices.get_mut(choice as usize)).is_some_and(ChoiceTimes::end);
        self.open -= usize::from(closed);
        closed
    }

    /// Whether the reader is so far behind that its request has to pause.
    fn behind(&self) -> bool {
        self.events.capacity() < self.choices.len() * STILL_COMING
    }

    /// Asks the reader to say when it has caught up. Whether it has not already.
    fn pause(&self) -> bool {
        self.slow.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let waiting = self.events.max_capacity() - self.events.capacity();
        waiting > AHEAD / 2 || !self.slow.swap(false, Ordering::SeqCst)
    }
}

/// All that the thread owns.
struct Worker<B: Backend> {
    engine: Engine<B>,
    clock: Clock,
    inbox: mpsc::Receiver<Letter>,
    shared: Arc<Shared>,
    lines: HashMap<RequestId, Line>,
    out: Vec<Delivery>,
    reported: Stats,
    metrics: ModelMetrics,
    pulse: Arc<Pulse>,
}

impl<B: Backend> Worker<B> {
    /// Turns the engine until it is lost or told to end. A panic counts as the loss of the device:
    /// nothing is known of its state.
    fn work(mut self) {
        let shared = Arc::clone(&self.shared);
        let turned = catch_unwind(AssertUnwindSafe(|| self.turn_until_the_end()));
        let ended = turned.unwrap_or_else(|panic| Err(Lost(Cause(words(&*panic)))));
        if let Err(lost) = &ended {
            tracing::error!("{lost}");
            self.fail_all(&lost.to_string());
        }
        self.pulse.rest();
        let unset = shared.ended.set(ended);
        debug_assert!(unset.is_ok(), "only the thread says how it ended");
        // Only now do senders find the mailbox closed, and then they find out why.
        drop(self);
        shared.freed.store(true, Ordering::Release);
        shared.over.notify_waiters();
    }

    fn turn_until_the_end(&mut self) -> Result<(), Lost> {
        loop {
            if let Some(why) = self.take_urgent() {
                self.fail_all(&why);
                return Ok(());
            }
            self.take_letters();
            self.pulse.beat();
            let turn = self.engine.turn(self.clock.now(), &mut self.out);
            // Before anyone has its tokens: who then asks for the counts finds them counted.
            self.report();
            self.deliver();
            self.report();
            if turn? == Turn::Idle {
                self.rest();
            }
        }
    }

    /// Sleeps until there is mail or a deadline.
    fn rest(&mut self) {
        self.pulse.rest();
        match self.engine.next_deadline() {
            Some(deadline) => std::thread::park_timeout(deadline.saturating_sub(self.clock.now())),
            None => std::thread::park(),
        }
    }

    /// Does what must not wait; the reason if it is to end.
    fn take_urgent(&mut self) -> Option<String> {
        let urgent = std::mem::take(&mut *self.shared.urgent());
        for urgent in urgent {
            match urgent {
                Urgent::Cancel(request) => self.cancel(request),
                Urgent::CancelChoice(request, choice) => self.cancel_choice(request, choice),
                Urgent::Resume(request) => self.engine.resume(request),
                Urgent::End(why) => return Some(why),
            }
        }
        None
    }

    fn cancel(&mut self, request: RequestId) {
        if let Some(line) = self.lines.remove(&request) {
            self.engine.cancel(request);
            let open = line.choices.iter().filter(|choice| !choice.ended());
            open.for_each(|_| self.metrics.ended(Ended::Abort));
        }
    }

    fn cancel_choice(&mut self, request: RequestId, choice: u32) {
        let Some(line) = self.lines.get_mut(&request) else {
            return;
        };
        if line.close(choice) {
            self.engine.cancel_choice(request, choice);
            let times = &line.choices[choice as usize];
            self.metrics
                .finished(Ended::Stop, &line.shape, times, self.clock.now());
        }
        if line.open == 0 {
            self.lines.remove(&request);
        }
    }

    fn take_letters(&mut self) {
        while let Ok(letter) = self.inbox.try_recv() {
            self.take(letter);
        }
    }

    fn take(&mut self, letter: Letter) {
        let Letter {
            request,
            arrived,
            reply,
            mailbox,
        } = letter;
        if reply.is_closed() {
            return;
        }
        let shape = Shape {
            arrived,
            prompt_tokens: request.prompt.len(),
            max_tokens: request.stop.max_tokens,
            choices: request.choices,
            measured: request.cache_salt != OURS,
        };
        let request = match self.engine.admit(request, self.clock.now()) {
            Ok(request) => request,
            Err(refused) => {
                self.metrics.refused(&refused);
                // A caller who has gone needs no answer.
                reply.send(Err(refused)).ok();
                return;
            }
        };
        let choices = shape.choices as usize;
        let (events, receiver) = mpsc::channel(AHEAD + choices * STILL_COMING);
        let slow = Arc::new(AtomicBool::new(false));
        let line = Line {
            events,
            slow: Arc::clone(&slow),
            choices: vec![ChoiceTimes::default(); choices],
            open: choices,
            shape,
        };
        self.lines.insert(request, line);
        let flight = Flight {
            request,
            events: receiver,
            slow,
            mailbox,
        };
        // If the caller has gone, dropping the flight cancels the request.
        reply.send(Ok(flight)).ok();
    }

    fn deliver(&mut self) {
        let now = self.clock.now();
        for delivery in self.out.drain(..) {
            let Delivery {
                request,
                choice,
                event,
            } = delivery;
            let Some(line) = self.lines.get_mut(&request) else {
                continue;
            };
            self.metrics
                .happened(&line.shape, &mut line.choices, choice, &event, now);
            if matches!(event, Event::Finished(_)) {
                line.close(choice);
            }
            // A reader who has gone cancels by itself; room there is, because `behind` keeps it.
            line.events.try_send((choice, event)).ok();
            if line.open == 0 {
                self.lines.remove(&request);
            } else if line.behind() && line.pause() {
                self.engine.pause(request);
            }
        }
    }

    /// Ends every request; what their readers have not read yet, they still can.
    fn fail_all(&mut self, why: &str) {
        let now = self.clock.now();
        for (_, line) in self.lines.drain() {
            for (choice, times) in (0_u32..).zip(&line.choices) {
                if !times.ended() {
                    self.metrics.finished(Ended::Error, &line.shape, times, now);
                    let event = Event::Finished(Finish::Failed(why.to_owned()));
                    line.events.try_send((choice, event)).ok();
                }
            }
        }
    }

    fn report(&mut self) {
        let stats = self.engine.stats();
        if stats != self.reported {
            self.metrics.stats(&self.reported, &stats);
            self.pulse.landed(stats.steps);
            self.reported = stats;
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the engine panicked: {}", text.unwrap_or("without words"))
}
