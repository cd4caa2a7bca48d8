//! The C interface of XLA's plugins, opened at run time.
//!
//! A plugin is one shared library for a kind of device. It compiles a module of HLO for one or
//! several of its devices and runs it on arrays that stay there:
//!
//! ```no_run
//! use pjrt::{CompileOptions, Element, Plugin, Value};
//!
//! # fn main() -> Result<(), pjrt::Error> {
//! # let module: Vec<u8> = Vec::new();
//! let plugin = Plugin::open("xla_cpu_pjrt.so".as_ref())?;
//! let client = plugin.client(&[("cpu_device_count", Value::Integer(2))])?;
//! let program = client.compile(&module, &CompileOptions::default())?;
//! let numbers = client.buffer(client.devices()[0], Element::S8, &[3], &[1, 2, 3])?;
//! let results = program.execute(&[vec![&numbers]])?;
//! let mut bytes = [0; 3];
//! results[0][0].to_host(&mut bytes)?;
//! # Ok(())
//! # }
//! ```
//!
//! All of it may be used from several threads at once; a run waits until its results are there. What
//! a client made keeps the client alive. A plugin stays loaded until the process ends, since its
//! threads do.

mod api;
mod element;
mod error;
mod options;
mod sys;

pub use api::{Buffer, Client, Executable, Plugin};
pub use element::Element;
pub use error::{Error, Refusal, Status};
pub use options::{CompileOptions, Value};
