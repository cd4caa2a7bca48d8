//! When: which rows run next, on which KV pages, and which token comes of it.
//!
//! The engine is a function of its inputs. Time comes as an argument, work by [`Engine::admit`],
//! the device by [`Backend`]: a trace of inputs replays to the same outputs. There is no I/O here,
//! no thread, no clock, no text.
#![forbid(unsafe_code)]

mod admission;
mod backend;
mod check;
mod delivery;
mod engine;
mod pages;
mod request;
mod sample;
mod schedule;
mod scripted;
mod sequence;
mod step;

pub use backend::{Axis, Backend, Cause, Demand, Device, Fault, Profile, Ticket};
pub use check::Checker;
pub use delivery::{Delivery, Event, Scored};
pub use engine::{Engine, Lost, Refused, Stats, Turn};
pub use request::{
    Constraint, Finish, Limits, Penalties, Priority, Request, RequestId, Sampling, Stop,
};
pub use scripted::{Moment, Script, Scripted};
pub use step::{Candidates, Entry, PageCopy, PageId, Row, Step, TokenId, TokenMask, Want};
