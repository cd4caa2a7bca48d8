//! Bodies: a request's on its way in and an answer's on its way out, and how long each may take.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::connection::Answering;
use super::tally::{Inside, Tally};

/// A request's body on its way in, whose client may not pause for long. What its reader leaves behind
/// is found at the [`Door`].
#[derive(Debug)]
pub(super) struct Arriving {
    body: Option<Incoming>,
    idle: Duration,
    pause: Option<Pin<Box<Sleep>>>,
    work: Option<Tally>,
    door: Door,
}

/// What is left of a body that nobody reads any more.
#[derive(Clone, Default, Debug)]
pub(super) struct Door(Arc<Mutex<Left>>);

#[derive(Default, Debug)]
struct Left {
    /// What nobody read.
    rest: Option<Incoming>,
    /// The request counts as work once its body has been read: until then it could be refused.
    work: Option<Inside>,
}

/// A client stopped in the middle of a body.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {} s", .0.as_secs())]
struct TooSlow(Duration);

impl Arriving {
    /// `work` counts the requests that ask for work, if this may be one.
    pub(super) fn new(body: Incoming, idle: Duration, work: Option<Tally>) -> (Self, Door) {
        let door = Door::default();
        let arriving = Self {
            body: Some(body),
            idle,
            pause: None,
            work,
            door: door.clone(),
        };
        (arriving, door)
    }
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            this.pause = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let idle = this.idle;
        let pause = (this.pause).get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        ready!(pause.as_mut().poll(cx));
        this.body = None;
        Poll::Ready(Some(Err(TooSlow(idle).into())))
    }

    fn is_end_stream(&self) -> bool {
        (self.body.as_ref()).is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        (self.body.as_ref()).map_or_else(SizeHint::default, hyper::body::Body::size_hint)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut left = self.door.left();
        left.rest = self.body.take().filter(|body| !body.is_end_stream());
        left.work = self.work.take().map(|work| work.enter());
    }
}

impl Door {
    fn left(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What counts this request as work.
    pub(super) fn work(&self) -> Option<Inside> {
        self.left().work.take()
    }

    /// Reads the rest and throws it away, up to `most` bytes and for at most `patience`: a client
    /// that sends all before it reads would else find its connection reset, and not the answer.
    pub(super) async fn throw_away(&self, most: u64, patience: Duration) {
        let rest = self.left().rest.take();
        let Some(mut body) = rest else {
            return;
        };
        let all = async {
            let mut thrown = 0;
            while thrown < most {
                match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                    Some(Ok(frame)) => thrown += frame.data_ref().map_or(0, Bytes::len) as u64,
                    Some(Err(_)) | None => return,
                }
            }
        };
        // Whoever takes longer has had the chance to see the answer.
        tokio::time::timeout(patience, all).await.ok();
    }
}

/// An answer's body on its way out: as long as it lives the request counts as being answered.
#[derive(Debug)]
pub(super) struct Outgoing {
    body: Body,
    answering: Answering,
    /// Counts it as work.
    _work: Option<Inside>,
}

impl Outgoing {
    pub(super) fn new(body: Body, answering: Answering, work: Option<Inside>) -> Self {
        Self {
            body,
            answering,
            _work: work,
        }
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.answering.taken();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.answering.handed_out();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
