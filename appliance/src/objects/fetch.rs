//! One object, read by ranges: each goes on where it broke off, none mixes two versions, and none is
//! given out that is not what the manifest says.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use model::Bytes;

use super::manifest::BLOCK;
use super::{
    ATTEMPTS, BlockCache, Listed, ObjectError, Objects, PATIENCE, Prefix, Stop, digest, pause, stop,
};

const ACTION: &str = "s3:GetObject";

/// An answer that has taken this long must have brought [`SLOWEST`] by then.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Bytes a second below which another connection is tried. An attempt that brought fewer bytes than
/// this in all was in vain.
const SLOWEST: u64 = 64 << 10;

/// The most bytes of an object that is read into memory: a NEFF of a large module has some 100 MB.
const LARGE: u64 = 2 << 30;

/// An object of the store, as it was when it was opened.
pub struct Object {
    objects: Objects,
    bucket: String,
    key: String,
    len: u64,
    /// The bytes that are meant: asked for by each range.
    etag: String,
    /// The digest of each block, where a manifest gives them.
    blocks: Option<Vec<String>>,
    cache: Option<Arc<BlockCache>>,
}

impl Object {
    /// The object that a listing of `prefix` has as `listed`.
    pub fn new(objects: &Objects, prefix: &Prefix, listed: &Listed) -> Self {
        Self {
            objects: objects.clone(),
            bucket: prefix.bucket.clone(),
            key: prefix.key(&listed.name),
            len: listed.size,
            etag: listed.etag.clone(),
            blocks: None,
            cache: None,
        }
    }

    /// The same, each block verified by these digests, and kept in the cache if there is one.
    #[must_use]
    pub fn verified(mut self, blocks: Vec<String>, cache: Option<Arc<BlockCache>>) -> Self {
        self.blocks = Some(blocks);
        self.cache = cache;
        self
    }

    /// What to call it in a message.
    fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    /// All of its bytes, of which there are few enough to be in memory at once.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn bytes(&self) -> Result<Vec<u8>, ObjectError> {
        self.whole(LARGE)
    }

    /// The same, with another limit.
    pub(super) fn whole(&self, limit: u64) -> Result<Vec<u8>, ObjectError> {
        let (url, len) = (self.url(), self.len);
        if len > limit {
            let why = format!("it has {len} bytes, and {limit} are allowed");
            return Err(ObjectError::Answer { url, why });
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.range(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out` with the bytes from `at` on, verified where they can be.
    pub(super) fn range(&self, at: u64, out: &mut [u8]) -> Result<(), ObjectError> {
        let Some(digests) = &self.blocks else {
            return self.fetch(at, out);
        };
        let size = BLOCK as u64;
        let end = at + out.len() as u64;
        for index in at / size..end.div_ceil(size) {
            let expected = usize::try_from(index)
                .ok()
                .and_then(|index| digests.get(index));
            let expected = expected.ok_or_else(|| ObjectError::Answer {
                url: self.url(),
                why: "it is longer than its manifest says".to_owned(),
            })?;
            let block = index * size..((index + 1) * size).min(self.len);
            let (from, to) = (block.start.max(at), block.end.min(end));
            let part = &mut out[place(from - at)..place(to - at)];
            if from == block.start && to == block.end {
                self.block(block.start, expected, part)?;
            } else {
                let mut whole = vec![0; place(block.end - block.start)];
                self.block(block.start, expected, &mut whole)?;
                part.copy_from_slice(&whole[place(from - block.start)..][..part.len()]);
            }
        }
        Ok(())
    }

    /// A whole block: from the cache, else from the store, which may have it damaged on the way once.
    fn block(&self, at: u64, expected: &str, out: &mut [u8]) -> Result<(), ObjectError> {
        if let Some(cache) = &self.cache
            && cache.get(expected, out)
        {
            return Ok(());
        }
        let mut found = String::new();
        for _ in 0..2 {
            self.fetch(at, out)?;
            found = digest(out);
            if found == expected {
                if let Some(cache) = &self.cache {
                    cache.put(expected, out);
                }
                return Ok(());
            }
            tracing::warn!(url = self.url(), at, "these bytes are damaged");
        }
        Err(ObjectError::Damaged {
            url: self.url(),
            from: at,
            to: at + out.len() as u64 - 1,
            expected: expected.to_owned(),
            found,
        })
    }

    /// Asks until all bytes are there. What has come is not asked for again.
    fn fetch(&self, at: u64, out: &mut [u8]) -> Result<(), ObjectError> {
        let (mut done, mut in_vain) = (0, 0);
        while done < out.len() {
            let ticket = self.objects.0.throttle.enter();
            let before = done;
            let attempt = self.attempt(at, out, &mut done);
            let why = match self.objects.wait(attempt) {
                Ok(()) => {
                    ticket.well();
                    continue;
                }
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Busy(why)) => {
                    ticket.busy();
                    why
                }
                Err(Stop::Again(why)) => {
                    drop(ticket);
                    why
                }
            };
            let has_moved = (done - before) as u64 >= SLOWEST;
            in_vain = if has_moved { 0 } else { in_vain + 1 };
            let url = self.url();
            if in_vain == ATTEMPTS {
                let action = ACTION;
                return Err(ObjectError::Away { action, url, why });
            }
            tracing::debug!(url, at, done, why, "asking again");
            pause(in_vain);
        }
        Ok(())
    }

    /// Asks once for what is missing of `out` after `done`, and counts what comes.
    async fn attempt(&self, at: u64, out: &mut [u8], done: &mut usize) -> Result<(), Stop> {
        let (from, to) = (at + *done as u64, at + out.len() as u64);
        let start = Instant::now();
        let call = (self.objects.client().get_object())
            .bucket(&self.bucket)
            .key(&self.key)
            .range(format!("bytes={from}-{}", to - 1))
            .set_if_match((!self.etag.is_empty()).then(|| self.etag.clone()));
        let late = |_| Stop::Again("the answer does not go on".to_owned());
        let answer = tokio::time::timeout(PATIENCE, call.send()).await;
        let answer = answer
            .map_err(late)?
            .map_err(|error| stop(&error, ACTION, self.url()))?;
        self.check(&answer, from, to)?;
        let mut body = answer.body;
        let before = *done;
        while *done < out.len() {
            let next = tokio::time::timeout(PATIENCE, body.next()).await;
            let bytes = match next.map_err(late)? {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Err(Stop::Again(error.to_string())),
                None => return Err(Stop::Again("the connection ended".to_owned())),
            };
            let rest = &mut out[*done..];
            let count = bytes.len().min(rest.len());
            rest[..count].copy_from_slice(&bytes[..count]);
            *done += count;
            let took = start.elapsed();
            let came = (*done - before) as u64;
            if took > FIRST_LOOK && came < took.as_secs() * SLOWEST && *done < out.len() {
                let why = format!("{came} bytes in {} s are too few", took.as_secs());
                return Err(Stop::Again(why));
            }
        }
        Ok(())
    }

    /// Refuses an answer that is not about the bytes `from..to` of the object that was opened.
    fn check(&self, answer: &GetObjectOutput, from: u64, to: u64) -> Result<(), Stop> {
        let url = self.url();
        // Not every store heeds If-Match.
        let etag = answer.e_tag().unwrap_or_default();
        if !self.etag.is_empty() && etag != self.etag {
            return Err(Stop::Failed(ObjectError::Changed { url }));
        }
        let len = self.len;
        let expected = format!("bytes {from}-{}/{len}", to - 1);
        let whole = from == 0 && to == len;
        match answer.content_range() {
            Some(range) if range == expected => Ok(()),
            None if whole => Ok(()),
            range => {
                let range = range.unwrap_or("all bytes");
                let why = format!("asked for {expected}, the store answers with {range}");
                Err(Stop::Failed(ObjectError::Answer { url, why }))
            }
        }
    }
}

/// A place within what is in memory.
fn place(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Bytes for Object {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.range(at, out).map_err(io::Error::other)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({} of {} bytes)", self.url(), self.len)
    }
}
