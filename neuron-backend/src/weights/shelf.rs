//! Tensors that ranks are reading: each is in memory once, from when the first rank wants it until the
//! last has it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{ReadError, Role, Stream, Tensor, Weights};

/// A checkpoint's tensors, shared by the writers of all ranks.
#[derive(Debug)]
pub(super) struct Shelf<'a> {
    weights: &'a Weights,
    /// What is read ahead, and what of it nobody has asked for yet.
    ahead: Option<(Stream<'a>, Mutex<HashSet<Role>>)>,
    places: Mutex<HashMap<Role, Arc<Place>>>,
    closed: AtomicBool,
}

/// Where a tensor is put by the first who asks for it; others wait.
type Place = Mutex<Option<Arc<Tensor>>>;

impl<'a> Shelf<'a> {
    pub(super) fn new(weights: &'a Weights) -> Self {
        Self {
            weights,
            ahead: None,
            places: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Begins to read these tensors, in this order.
    pub(super) fn read_ahead(&mut self, roles: Vec<Role>) -> Result<(), ReadError> {
        let stream = self.weights.stream(roles.iter().copied())?;
        let awaited = roles.into_iter().collect();
        self.ahead = Some((stream, Mutex::new(awaited)));
        Ok(())
    }

    /// The tensor for `role`: from the shelf, else read.
    pub(super) fn tensor(&self, role: Role) -> Result<Arc<Tensor>, ReadError> {
        let place = Arc::clone(lock(&self.places).entry(role).or_default());
        let mut place = lock(&place);
        if self.closed.load(Ordering::Relaxed) {
            let why = Arc::new(io::Error::other("another rank has failed"));
            let path = PathBuf::from("the checkpoint");
            return Err(ReadError { path, why });
        }
        if let Some(tensor) = &*place {
            return Ok(Arc::clone(tensor));
        }
        let ahead = self.ahead.as_ref();
        let ahead = ahead.filter(|(_, awaited)| lock(awaited).remove(&role));
        let tensor = match ahead {
            Some((stream, _)) => {
                let (dtype, shape) = self.weights.shape(role);
                let bytes = stream.whole(role)?;
                Tensor {
                    dtype,
                    shape: shape.to_vec(),
                    bytes,
                }
            }
            None => self.weights.tensor(role)?,
        };
        Ok(Arc::clone(place.insert(Arc::new(tensor))))
    }

    /// Nobody needs the tensor any more.
    pub(super) fn let_go(&self, role: Role) {
        lock(&self.places).remove(&role);
    }

    /// Whoever asks from now on is refused.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
