//! Templates as programs: compiled once, run with bounds, with what transformers adds to Jinja.

use std::error::Error as _;
use std::io;

use jiff::ZonedDateTime;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::{Map, Value};

use super::TemplateError;
use super::json::tojson;
use super::python;

/// The most steps of one run: about half a second. A chat takes some hundred a message.
const STEPS: u64 = 10_000_000;
/// The most bytes that one run writes: twice what a request brings in.
const OUTPUT: usize = 64 << 20;

/// A model's templates by name.
#[derive(Debug)]
pub(super) struct Programs {
    environment: Environment<'static>,
}

impl Programs {
    /// Compiles templates, given as name and source.
    pub(super) fn compile(sources: Vec<(String, String)>) -> Result<Self, TemplateError> {
        let mut environment = environment();
        for (name, source) in sources {
            let source = without_generation_tags(&source);
            let added = environment.add_template_owned(name, source);
            added.map_err(|error| failed(&error))?;
        }
        Ok(Self { environment })
    }

    /// Whether there is a template of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names().contains(&name)
    }

    /// The source of the template of that name.
    pub(super) fn source(&self, name: &str) -> Option<String> {
        let template = self.environment.get_template(name).ok()?;
        Some(template.source().to_owned())
    }

    /// The names of all, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.environment.templates().map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }

    /// What the template of that name writes.
    pub(super) fn run(
        &self,
        name: &str,
        variables: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template(name);
        let template = template.map_err(|error| failed(&error))?;
        let mut page = Page::default();
        match template.render_captured_to(variables, &mut page) {
            Ok(_) => String::from_utf8(page.text).map_err(|error| {
                TemplateError::Refused(format!("the chat template writes no text: {error}"))
            }),
            Err(_) if page.full => Err(TemplateError::Refused(format!(
                "the chat template writes more than {OUTPUT} bytes for these messages"
            ))),
            Err(error) if error.kind() == ErrorKind::OutOfFuel => Err(TemplateError::Refused(
                format!("the chat template takes more than {STEPS} steps for these messages"),
            )),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(STEPS));
    environment.set_debug(false);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::write);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// What a template refuses with `raise_exception`, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<String, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let now = &ZonedDateTime::now();
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

fn failed(error: &Error) -> TemplateError {
    let raised = error.source().and_then(|source| source.downcast_ref());
    let why = match (raised, error.detail()) {
        (Some(Raised(message)), _) => message.clone(),
        (None, Some(detail)) => format!("{}: {detail}", error.kind()),
        (None, None) => error.kind().to_string(),
    };
    TemplateError::Failed {
        line: error.line().unwrap_or(1),
        why,
    }
}

/// Takes what a template writes, up to a limit.
#[derive(Default)]
struct Page {
    text: Vec<u8>,
    full: bool,
}

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > OUTPUT {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Transformers marks what the model wrote with `{% generation %}`, for training. To a server it is a
/// block that is always there.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(tag) = rest.find("{%") {
        let (before, from_tag) = rest.split_at(tag);
        text += before;
        let end = from_tag.find("%}").map_or(from_tag.len(), |end| end + 2);
        let (tag, after) = from_tag.split_at(end);
        match tag.trim_matches(['{', '%', '}', '-', '+']).trim() {
            "generation" => text += &tag.replace("generation", "if true"),
            "endgeneration" => text += &tag.replace("endgeneration", "endif"),
            _ => text += tag,
        }
        rest = after;
    }
    text + rest
}
