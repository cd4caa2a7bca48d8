//! The life of the runtime in a process: before `nrt_init`, between, after `nrt_close`.

use std::sync::{Arc, PoisonError, RwLock};

use crate::cores::{self, Claim};
use crate::journal::Start;
use crate::runtime::{Numbers, Runtime};
use crate::settings::Settings;
use crate::status::{Failure, Status, misuse, refuse};

/// What a process has of the runtime.
#[derive(Debug)]
pub struct Process(RwLock<State>);

#[derive(Debug)]
enum State {
    Start,
    Open(Arc<Runtime>),
    /// The cores stay this process' until it ends.
    Closed(Arc<Claim>, Numbers),
}

impl Process {
    /// Before `nrt_init`.
    pub const fn new() -> Self {
        Self(RwLock::new(State::Start))
    }

    /// Starts the runtime.
    ///
    /// # Errors
    /// It runs or ran already, another process has one of the cores, or the settings make no sense.
    pub fn init(&self, settings: Settings) -> Result<Arc<Runtime>, Failure> {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let runtime = match &*state {
            State::Start => Runtime::open(settings, [1; 3], None)?,
            State::Open(_) => return Err(refuse!(INVALID, "nrt_init was called already")),
            State::Closed(claim, numbers) if settings.reinit => {
                let visible = cores::visible(&settings)?;
                let same = visible == claim.cores;
                let claim = same.then(|| Arc::clone(claim));
                Runtime::open(settings, *numbers, claim)?
            }
            State::Closed(..) => {
                return Err(refuse!(
                    CLOSED,
                    "nrt_init after nrt_close: not every runtime takes it (FAKE_NRT_REINIT=1 does)"
                ));
            }
        };
        let runtime = Arc::new(runtime);
        *state = State::Open(Arc::clone(&runtime));
        Ok(runtime)
    }

    /// The runtime.
    ///
    /// # Errors
    /// `UNINITIALIZED` before [`Process::init`], `CLOSED` after [`Process::close`].
    pub fn runtime(&self) -> Result<Arc<Runtime>, Failure> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            State::Start => Err(refuse!(UNINITIALIZED, "nrt_init was not called")),
            State::Open(runtime) => Ok(Arc::clone(runtime)),
            State::Closed(..) => Err(refuse!(CLOSED, "nrt_close was called")),
        }
    }

    /// The runtime, for functions that give nothing back: after `nrt_close` they do nothing.
    pub fn runtime_or_nothing(&self) -> Result<Option<Arc<Runtime>>, Failure> {
        match self.runtime() {
            Ok(runtime) => Ok(Some(runtime)),
            Err(failure) if failure.status() == Status::CLOSED => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Ends the runtime, and reports what was never freed; `more` is what the C interface knows of.
    /// Does nothing unless it runs.
    ///
    /// # Errors
    /// Misuse: something runs, or something is left and the settings say that this must not be.
    pub fn close(&self, more: &[String]) -> Result<(), Failure> {
        let start = Start::now();
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let State::Open(runtime) = &*state else {
            return Ok(());
        };
        let runtime = Arc::clone(runtime);
        let mut leaks = runtime.leaks()?;
        leaks.extend_from_slice(more);
        *state = State::Closed(runtime.claim(), runtime.numbers());
        let status = if leaks.is_empty() {
            Status::SUCCESS
        } else {
            Status::FAILURE
        };
        runtime.note_close(start, status);
        if leaks.is_empty() {
            return Ok(());
        }
        let report = format!("left at nrt_close: {}", leaks.join(", "));
        if runtime.settings().leaks_abort {
            return Err(misuse!("{report}"));
        }
        eprintln!("fake-nrt: {report}");
        Ok(())
    }
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}
