//! Log lines: where they go, how they look, and which are written. That last may change meanwhile.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

use crate::config::LogFormat;
use crate::host::journal::{self, Prioritised};

/// Libraries whose lines are of no use to who runs a server, unless they warn.
const CHATTY: [&str; 4] = ["aws_", "hyper", "rustls", "h2"];

/// Sets the level of log lines. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// From now on lines below `level` are not written.
    pub(crate) fn set(&self, level: LevelFilter) {
        // It fails only if nothing logs any more.
        self.0.reload(lines(level)).ok();
    }
}

/// Log lines and panics go to standard error from here on.
pub(crate) fn begin(format: LogFormat, level: LevelFilter) -> Level {
    let (filter, handle) = reload::Layer::new(lines(level));
    let told = fmt::layer().with_target(false).with_writer(io::stderr);
    let told = match format {
        LogFormat::Human if journal::is_stderr() => {
            let form = fmt::format().with_target(false).with_ansi(false);
            let form = Prioritised(form.without_time());
            told.event_format(form).boxed()
        }
        LogFormat::Human => told.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => told
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    let set = tracing::subscriber::set_global_default(Registry::default().with(filter).with(told));
    debug_assert!(set.is_ok(), "logging is set up once");
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Level(handle)
}

fn lines(level: LevelFilter) -> Targets {
    let chatty = CHATTY.map(|target| (target, level.min(LevelFilter::WARN)));
    Targets::new().with_default(level).with_targets(chatty)
}
