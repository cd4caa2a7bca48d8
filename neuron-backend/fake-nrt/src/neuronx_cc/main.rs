//! Stands in for `neuronx-cc` in tests: takes its command line, looks the module over as strictly as
//! we know how, and writes a NEFF that the stand-in for libnrt loads.
//!
//! ```text
//! neuronx-cc compile FILE --framework XLA --target trn2 --output FILE.neff [flags]
//! neuronx-cc --version
//! ```
//!
//! Like the real one (neuron.md 2.1) it ends with 0 when all is well, with 2 for arguments that it
//! does not know and with 70 for a module that it refuses, whose rule it names on standard error and
//! in the log; and it litters its working directory. A module passes when it breaks no rule of
//! [`graph::check`] and when XLA's own verifier and compiler take it too, for which
//! `APPLIANCE_XLA_CPU` names XLA's plugin for the CPU; without it XLA is not asked, and a warning
//! says so.
//!
//! `FAKE_NEURONX_CC` makes it fail as the real one does. It is a list, separated by commas, of
//!
//! | word | what happens |
//! |---|---|
//! | `exit70` | an error of the compiler's own, code 70 |
//! | `f137` | the words of a child that was killed for want of memory, code 70 |
//! | `killed` | SIGKILL, as the kernel does for want of memory |
//! | `abort` | SIGABRT |
//! | `segfault` | SIGSEGV |
//! | `slow=SECONDS` | it takes so much longer |
//! | `memory=MIB` | it holds so much memory until it ends |
//! | `hang` | it never ends, leaves SIGTERM unheeded, and has a child that does the same |
//! | `garbage` | code 0 and a file that is no NEFF |
//! | `truncated` | code 0 and half a NEFF |
//! | `nothing` | code 0 and no file |
//! | `newer` | code 0 and a NEFF of a version that no runtime takes |
//! | `version=TEXT` | what it says its version is |
//!
//! each of which may be followed by `@MODULE`, the beginning of the names of modules that it is for
//! (`killed@decode-16`), and then by `:once=FILE`: it happens to whoever makes FILE, and to nobody
//! after (`exit70@prefill:once=marker`). Words that it does not know are refused with code 64.

mod arguments;
mod compile;
mod misbehave;

use std::process::ExitCode;

use arguments::Request;
use misbehave::Mischief;

/// The version that the real one of SDK 2.32 has.
const VERSION: &str = "2.27.5334.0+fake";

/// Code of a module that is refused, or of an error of its own.
const REFUSED: u8 = 70;

/// Code of arguments that it does not know, as Python's `argparse` has it.
const USAGE: u8 = 2;

/// Code of a `FAKE_NEURONX_CC` that has no meaning.
const CONFUSED: u8 = 64;

fn main() -> ExitCode {
    misbehave::hang_on();
    let mischief = match Mischief::from_environment() {
        Ok(mischief) => mischief,
        Err(error) => {
            eprintln!("fake-neuronx-cc: FAKE_NEURONX_CC: {error}");
            return ExitCode::from(CONFUSED);
        }
    };
    let version = mischief.version().unwrap_or(VERSION).to_owned();
    match Request::parse(std::env::args().skip(1)) {
        Ok(Request::Version) => {
            println!("NeuronX Compiler version {version}\n\nPython version none: a stand-in");
            ExitCode::SUCCESS
        }
        Ok(Request::Compile(arguments)) => compile::compile(&arguments, &mischief, &version),
        Err(error) => {
            eprintln!(
                "usage: neuronx-cc compile FILE --framework XLA --target TARGET --output FILE"
            );
            eprintln!("neuronx-cc compile: error: {error}");
            ExitCode::from(USAGE)
        }
    }
}
