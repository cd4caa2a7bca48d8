//! A checkpoint's bytes in the order in which a backend wants them, read ahead by a few threads into a
//! bounded number of blocks.
//!
//! A block is read once, checked whole, and cut into the tensors that lie in it: so reads are large
//! whatever the tensors' sizes, and whoever stores the checkpoint can give one digest a block. One in
//! which tensors lie that are wanted far apart is read once for each time, which keeps the memory
//! bounded and costs little: it is those at the borders of tensors.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::bytes::{ALIGNMENT, Bytes, Flow, ReadError};
use crate::weights::{Role, Weights};

/// How much has been read of what is to be read, all streams of a checkpoint together.
#[derive(Default, Debug)]
pub struct Progress {
    read: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that were ordered.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// Tensors on their way, in order. Dropping it ends the reading.
#[derive(Debug)]
pub struct Stream<'a> {
    weights: &'a Weights,
    /// Of each role its blocks, by their places in the order.
    routes: HashMap<Role, Vec<usize>>,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

/// Rows of a tensor, in memory until this is dropped.
pub struct Rows {
    shared: Arc<Shared>,
    blocks: Vec<Arc<Block>>,
    /// Of the first row, in the first block.
    start: usize,
    /// Bytes of a row.
    width: usize,
    count: usize,
    /// Rows that begin in one block and end in another, by the block that they begin in.
    seams: HashMap<usize, Vec<u8>>,
}

/// What the threads have in common.
#[derive(Debug)]
struct Shared {
    shards: Vec<(Arc<dyn Bytes>, PathBuf)>,
    fetches: Vec<Fetch>,
    flow: Flow,
    progress: Arc<Progress>,
    state: Mutex<State>,
    /// Told when a block has come, or none will.
    came: Condvar,
    /// Told when there may be room for another.
    room: Condvar,
}

/// A block that is to be read.
#[derive(Debug)]
struct Fetch {
    shard: usize,
    at: u64,
    len: usize,
    /// Bytes of it that will be asked for.
    wanted: usize,
}

#[derive(Default, Debug)]
struct State {
    /// The first that no reader has taken.
    next: usize,
    /// The last that somebody waits for: it is read even if there is no room.
    demanded: Option<usize>,
    slots: HashMap<usize, Slot>,
    /// Memory of blocks that are done with.
    free: Vec<Block>,
    failed: Option<ReadError>,
    closed: bool,
}

#[derive(Debug)]
enum Slot {
    Coming,
    Here {
        block: Arc<Block>,
        /// Bytes that have not been asked for yet.
        wanted: usize,
    },
}

/// Memory for the bytes of a block, aligned as direct reads want it.
struct Block {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl<'a> Stream<'a> {
    /// Begins to read the tensors of `order`, in that order.
    pub(crate) fn new(
        weights: &'a Weights,
        order: impl IntoIterator<Item = Role>,
    ) -> Result<Self, ReadError> {
        let flow = weights.flow();
        let shards = weights.shards().to_vec();
        let (fetches, routes) = plan(weights, order, flow);
        let shared = Arc::new(Shared {
            shards,
            fetches,
            flow,
            progress: weights.progress(),
            state: Mutex::default(),
            came: Condvar::new(),
            room: Condvar::new(),
        });
        let total: u64 = shared.fetches.iter().map(|fetch| fetch.len as u64).sum();
        shared.progress.total.fetch_add(total, Ordering::Relaxed);
        let mut stream = Self {
            weights,
            routes,
            shared,
            readers: Vec::new(),
        };
        for _ in 0..flow.readers.min(stream.shared.fetches.len()) {
            let shared = Arc::clone(&stream.shared);
            let reader = thread::Builder::new()
                .name("weights".to_owned())
                .spawn(move || shared.serve());
            // A host with few threads left has those that were started.
            match reader {
                Ok(reader) => stream.readers.push(reader),
                Err(_) if !stream.readers.is_empty() => break,
                Err(error) => return Err(stream.shared.error(0, error)),
            }
        }
        Ok(stream)
    }

    /// Waits for these rows of the tensor for `role`; a vector is one row. They are to be asked for once,
    /// and more or less in the order that was given: what is asked for early is read out of turn, what is
    /// asked for late is held.
    ///
    /// # Errors
    /// They cannot be read.
    ///
    /// # Panics
    /// If the role was not in the order: a mistake of the caller's.
    pub fn rows(&self, role: Role, rows: Range<usize>) -> Result<Rows, ReadError> {
        let route = self.routes.get(&role);
        let route = route.unwrap_or_else(|| panic!("{role:?} was not in the order"));
        let (whole, width) = self.weights.extent(role);
        let block = self.shared.flow.block;
        let bytes = whole.start + rows.start * width..whole.start + rows.end * width;
        let first = whole.start / block;
        let needed = bytes.start / block..bytes.end.div_ceil(block);
        let needed = if bytes.is_empty() { 0..0 } else { needed };
        let blocks = needed
            .clone()
            .map(|at| {
                let part = overlap(&bytes, at, block);
                self.shared.take(route[at - first], part.len())
            })
            .collect::<Result<_, _>>()?;
        let mut rows = Rows {
            shared: Arc::clone(&self.shared),
            blocks,
            start: bytes.start - needed.start * block,
            width,
            count: rows.len(),
            seams: HashMap::new(),
        };
        rows.sew();
        Ok(rows)
    }

    /// Waits for the whole tensor for `role`.
    ///
    /// # Errors
    /// It cannot be read.
    ///
    /// # Panics
    /// As [`Stream::rows`].
    pub fn whole(&self, role: Role) -> Result<Vec<u8>, ReadError> {
        let (whole, width) = self.weights.extent(role);
        let count = whole.len() / width.max(1);
        let most = (self.shared.flow.block / width.max(1)).max(1);
        let mut bytes = Vec::with_capacity(whole.len());
        for first in (0..count).step_by(most) {
            let rows = self.rows(role, first..count.min(first + most))?;
            (0..rows.len()).for_each(|row| bytes.extend_from_slice(rows.row(row)));
        }
        Ok(bytes)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.room.notify_all();
        for reader in self.readers.drain(..) {
            // One that panicked has said so.
            reader.join().ok();
        }
    }
}

/// The blocks to read, in order, and of each role which are its own.
fn plan(
    weights: &Weights,
    order: impl IntoIterator<Item = Role>,
    flow: Flow,
) -> (Vec<Fetch>, HashMap<Role, Vec<usize>>) {
    // A block may wait for its next tensor while so many others are read: half of what there is room
    // for, so that there is always some.
    let horizon = flow.held / 2;
    let mut fetches: Vec<Fetch> = Vec::new();
    let mut routes = HashMap::new();
    let mut latest = HashMap::new();
    for role in order {
        if routes.contains_key(&role) {
            continue;
        }
        let (bytes, _) = weights.extent(role);
        let shard = weights.shard(role);
        let len = usize::try_from(weights.shards()[shard].0.len()).unwrap_or(usize::MAX);
        let blocks = bytes.start / flow.block..bytes.end.div_ceil(flow.block);
        let route = blocks.map(|at| {
            let wanted = overlap(&bytes, at, flow.block).len();
            let last = latest.entry((shard, at)).or_insert(usize::MAX);
            match fetches.len().checked_sub(*last) {
                Some(ago) if ago <= horizon => fetches[*last].wanted += wanted,
                _ => {
                    *last = fetches.len();
                    fetches.push(Fetch {
                        shard,
                        at: (at * flow.block) as u64,
                        len: flow.block.min(len - at * flow.block),
                        wanted,
                    });
                }
            }
            *last
        });
        let route = route.collect();
        routes.insert(role, route);
    }
    (fetches, routes)
}

/// Which of these bytes are in block `at`.
fn overlap(bytes: &Range<usize>, at: usize, block: usize) -> Range<usize> {
    bytes.start.max(at * block)..bytes.end.min((at + 1) * block)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, on: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        on.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader's life: the next block, as long as there is one and room for it.
    fn serve(&self) {
        while let Some((fetch, mut block)) = self.next() {
            let Fetch {
                shard,
                at,
                len,
                wanted,
            } = self.fetches[fetch];
            block.resize(len);
            let read = self.shards[shard].0.read(at, block.bytes_mut());
            let mut state = self.lock();
            match read {
                Ok(()) => {
                    self.progress.read.fetch_add(len as u64, Ordering::Relaxed);
                    let block = Arc::new(block);
                    state.slots.insert(fetch, Slot::Here { block, wanted });
                }
                Err(error) => {
                    state.failed.get_or_insert(self.error(shard, error));
                    self.room.notify_all();
                }
            }
            self.came.notify_all();
        }
    }

    fn next(&self) -> Option<(usize, Block)> {
        let mut state = self.lock();
        loop {
            if state.closed || state.failed.is_some() || state.next == self.fetches.len() {
                return None;
            }
            let is_awaited = state.demanded.is_some_and(|last| state.next <= last);
            if is_awaited || state.slots.len() < self.flow.held {
                let fetch = state.next;
                state.next += 1;
                state.slots.insert(fetch, Slot::Coming);
                let block = state.free.pop();
                drop(state);
                return Some((fetch, block.unwrap_or_else(|| Block::new(self.flow.block))));
            }
            state = self.wait(&self.room, state);
        }
    }

    /// Waits for a block of which so many bytes are wanted now.
    fn take(&self, fetch: usize, bytes: usize) -> Result<Arc<Block>, ReadError> {
        let mut state = self.lock();
        if fetch >= state.next {
            state.demanded = state.demanded.max(Some(fetch));
            self.room.notify_all();
        }
        loop {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let is_taken = fetch < state.next;
            match state.slots.get_mut(&fetch) {
                Some(Slot::Here { block, wanted }) => {
                    let block = Arc::clone(block);
                    *wanted = wanted.saturating_sub(bytes);
                    if *wanted == 0 {
                        state.slots.remove(&fetch);
                        self.room.notify_all();
                    }
                    return Ok(block);
                }
                None if is_taken => {
                    let error = io::Error::other("its rows were read before");
                    return Err(self.error(self.fetches[fetch].shard, error));
                }
                Some(Slot::Coming) | None => state = self.wait(&self.came, state),
            }
        }
    }

    fn error(&self, shard: usize, error: io::Error) -> ReadError {
        let path = self.shards.get(shard).map(|(_, path)| path.clone());
        ReadError {
            path: path.unwrap_or_default(),
            why: Arc::new(error),
        }
    }
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes of one of them, counted from the first that was asked for.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn row(&self, index: usize) -> &[u8] {
        assert!(index < self.count, "row {index} of {}", self.count);
        let block = self.shared.flow.block;
        let start = self.start + index * self.width;
        let (at, within) = (start / block, start % block);
        if within + self.width <= block {
            &self.blocks[at].bytes()[within..within + self.width]
        } else {
            &self.seams[&at]
        }
    }

    /// Copies the rows that are cut by the end of a block.
    fn sew(&mut self) {
        let block = self.shared.flow.block;
        let mut end = block;
        while end < self.start + self.count * self.width {
            let index = (end - 1 - self.start) / self.width;
            let start = self.start + index * self.width;
            let stop = start + self.width;
            if start < end && end < stop {
                let blocks = start / block..stop.div_ceil(block);
                let parts = blocks.map(|at| {
                    let part = overlap(&(start..stop), at, block);
                    &self.blocks[at].bytes()[part.start - at * block..part.end - at * block]
                });
                let row: Vec<u8> = parts.flatten().copied().collect();
                self.seams.insert(start / block, row);
            }
            end += block;
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let free = self.blocks.drain(..).filter_map(Arc::into_inner);
        let free: Vec<_> = free.collect();
        let mut state = self.shared.lock();
        state.free.extend(free);
        state.free.truncate(self.shared.flow.readers);
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({} of {} bytes)", self.count, self.width)
    }
}

impl Block {
    fn new(size: usize) -> Self {
        let memory = vec![0; size + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            memory,
            start,
            len: size,
        }
    }

    /// Of a block's memory, so much is used.
    fn resize(&mut self, len: usize) {
        self.len = len;
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len)
    }
}
