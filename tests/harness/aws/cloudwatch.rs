//! CloudWatch as far as `PutMetricData` goes, with every limit that its reference states. What was
//! taken can be asked for.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::read::GzDecoder;

use super::cbor::Cbor;
use super::front::{Asked, Front, Manner, Reply};
use super::keys::Keys;
use super::refusal::{Refusal, refused};

/// Different metrics in one call.
const METRICS: usize = 1000;
/// Bytes of the body of one call, as it is sent.
const BYTES: usize = 1 << 20;
/// Values, with their counts, of one datum.
const VALUES: usize = 150;
/// Dimensions of one datum.
const DIMENSIONS: usize = 30;
/// Characters of a namespace, or of a name of a metric or dimension.
const NAME: usize = 255;
/// Characters of the value of a dimension.
const DIMENSION_VALUE: usize = 1024;
/// Seconds that a datum may be behind, and ahead.
const BEHIND: f64 = 14.0 * 86400.0;
const AHEAD: f64 = 2.0 * 3600.0;

/// A datum that was taken.
#[derive(Clone, PartialEq, Debug)]
pub struct Datum {
    /// The namespace of its call.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its dimensions in the order of their names.
    pub dimensions: Vec<(String, String)>,
    /// When, in seconds since 1970.
    pub time: f64,
    /// Values and how often each.
    pub values: Vec<(f64, f64)>,
    /// `Percent`, `Seconds`, `None`, ..
    pub unit: String,
    /// 1 or 60 seconds.
    pub resolution: u32,
}

impl Datum {
    /// The sum of all values.
    pub fn sum(&self) -> f64 {
        self.values.iter().map(|(value, count)| value * count).sum()
    }

    /// How many samples it stands for.
    pub fn samples(&self) -> f64 {
        self.values.iter().map(|(_, count)| count).sum()
    }

    /// The value of a dimension.
    pub fn dimension(&self, name: &str) -> Option<&str> {
        let found = self.dimensions.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }
}

/// A call that was taken.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it brought.
    pub data: Vec<Datum>,
    /// Bytes of its body as it was sent.
    pub sent: usize,
    /// Bytes of its body once unpacked.
    pub unpacked: usize,
}

/// A fake of CloudWatch.
#[derive(Debug)]
pub struct CloudWatch {
    front: Front,
    book: Book,
}

#[derive(Clone, Default, Debug)]
struct Book(Arc<Mutex<Pages>>);

#[derive(Default, Debug)]
struct Pages {
    calls: Vec<Call>,
    refused: Vec<Refusal>,
}

impl CloudWatch {
    /// CloudWatch of the account, on a free port.
    pub fn start(keys: &Keys) -> Self {
        let book = Book::default();
        let (writing, keys) = (book.clone(), keys.clone());
        let front = Front::start(keys.clock.clone(), move |asked| {
            let call = keys.check(asked).and_then(|()| call(asked, &keys));
            match call {
                Ok(call) => {
                    writing.pages().calls.push(call);
                    Reply::new(200, "application/cbor", [0xa0])
                        .header("smithy-protocol", "rpc-v2-cbor")
                }
                Err(refusal) => {
                    writing.pages().refused.push(refusal.clone());
                    refused(asked, &refusal)
                }
            }
        });
        Self { front, book }
    }

    /// Where it is: for `AWS_ENDPOINT_URL_CLOUDWATCH`.
    pub fn url(&self) -> String {
        self.front.url()
    }

    /// Behaves like this from now on.
    pub fn behave(&self, manner: Manner) {
        self.front.behave(manner);
    }

    /// Answers the next `count` requests with an error, then goes on as before.
    pub fn fail_next(&self, count: usize, status: u16, code: &'static str) {
        self.front.fail_next(count, status, code);
    }

    /// How many calls there were, whatever the answer.
    pub fn asked(&self) -> usize {
        self.front.count("PutMetricData")
    }

    /// The calls that were taken.
    pub fn calls(&self) -> Vec<Call> {
        self.book.pages().calls.clone()
    }

    /// What was not taken for what it was, or from whom.
    pub fn refused(&self) -> Vec<Refusal> {
        self.book.pages().refused.clone()
    }

    /// All data of this name that were taken, in the order in which they came.
    pub fn data(&self, name: &str) -> Vec<Datum> {
        let pages = self.book.pages();
        let data = pages.calls.iter().flat_map(|call| &call.data);
        data.filter(|datum| datum.name == name).cloned().collect()
    }
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "InvalidParameterValue", message)
}

/// The call that a request makes, if it is right.
fn call(asked: &Asked, keys: &Keys) -> Result<Call, Refusal> {
    if asked.path != "/service/GraniteServiceVersion20100801/operation/PutMetricData" {
        let message = format!("{} is not of this fake", asked.path);
        return Err(Refusal::new(404, "UnknownOperationException", message));
    }
    if asked.body.len() > BYTES {
        let message = format!("{} bytes are more than {BYTES}", asked.body.len());
        return Err(Refusal::new(413, "RequestEntityTooLarge", message));
    }
    let unpacked = match asked.header("content-encoding") {
        None => asked.body.clone(),
        Some("gzip") => {
            let mut plain = Vec::new();
            let read = GzDecoder::new(&*asked.body).read_to_end(&mut plain);
            read.map_err(|error| invalid(format!("not gzip: {error}")))?;
            plain
        }
        Some(other) => return Err(invalid(format!("the encoding {other}"))),
    };
    let body = Cbor::read(&unpacked).map_err(|error| invalid(format!("not CBOR: {error}")))?;
    let namespace = body
        .get("Namespace")
        .and_then(Cbor::text)
        .unwrap_or_default();
    named("Namespace", namespace, NAME)?;
    if namespace.starts_with("AWS/") {
        return Err(invalid(
            "The value AWS/ for parameter Namespace is reserved",
        ));
    }
    let data = body
        .get("MetricData")
        .and_then(Cbor::list)
        .unwrap_or_default();
    let data: Vec<_> = data
        .iter()
        .map(|datum| read(namespace, datum, keys))
        .collect::<Result<_, _>>()?;
    let different: BTreeSet<_> = data
        .iter()
        .map(|datum| (&datum.name, &datum.dimensions))
        .collect();
    match different.len() {
        0 => Err(Refusal::new(
            400,
            "MissingParameter",
            "The parameter MetricData is required",
        )),
        1..=METRICS => Ok(Call {
            sent: asked.body.len(),
            unpacked: unpacked.len(),
            data,
        }),
        more => Err(invalid(format!("{more} metrics are more than {METRICS}"))),
    }
}

/// Refuses a name that is empty, too long, no ASCII, or begins with a colon.
fn named(what: &str, name: &str, longest: usize) -> Result<(), Refusal> {
    let right = (1..=longest).contains(&name.len())
        && name.bytes().all(|byte| (32..127).contains(&byte))
        && !name.trim().is_empty()
        && !name.starts_with(':');
    match right {
        true => Ok(()),
        false => Err(invalid(format!("{what} is {name:?}"))),
    }
}

/// One datum, if it is right.
fn read(namespace: &str, datum: &Cbor, keys: &Keys) -> Result<Datum, Refusal> {
    let name = datum
        .get("MetricName")
        .and_then(Cbor::text)
        .unwrap_or_default();
    named("MetricName", name, NAME)?;
    let time = match datum.get("Timestamp") {
        None => seconds(keys),
        Some(time) => time
            .number()
            .ok_or_else(|| invalid(format!("{name}: the time {time:?}")))?,
    };
    let age = seconds(keys) - time;
    if !(-AHEAD..=BEHIND).contains(&age) {
        return Err(invalid(format!("{name}: {age} s old is out of the range")));
    }
    let unit = datum.get("Unit").and_then(Cbor::text).unwrap_or("None");
    let resolution = match datum.get("StorageResolution").map(Cbor::number) {
        None => 60,
        Some(Some(1.0)) => 1,
        Some(Some(60.0)) => 60,
        Some(other) => return Err(invalid(format!("{name}: StorageResolution {other:?}"))),
    };
    Ok(Datum {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        dimensions: dimensions(name, datum)?,
        time,
        values: values(name, datum)?,
        unit: unit.to_owned(),
        resolution,
    })
}

/// Seconds since 1970 on the account's clock.
fn seconds(keys: &Keys) -> f64 {
    keys.clock.now().as_duration().as_secs_f64()
}

fn dimensions(metric: &str, datum: &Cbor) -> Result<Vec<(String, String)>, Refusal> {
    let given = datum
        .get("Dimensions")
        .and_then(Cbor::list)
        .unwrap_or_default();
    if given.len() > DIMENSIONS {
        return Err(invalid(format!(
            "{metric}: {} dimensions are more than {DIMENSIONS}",
            given.len()
        )));
    }
    let mut dimensions = Vec::new();
    for dimension in given {
        let part = |name| dimension.get(name).and_then(Cbor::text).unwrap_or_default();
        named("Dimension name", part("Name"), NAME)?;
        named("Dimension value", part("Value"), DIMENSION_VALUE)?;
        dimensions.push((part("Name").to_owned(), part("Value").to_owned()));
    }
    dimensions.sort();
    let twice = dimensions.windows(2).any(|pair| pair[0].0 == pair[1].0);
    match twice {
        true => Err(invalid(format!(
            "{metric}: a dimension twice: {dimensions:?}"
        ))),
        false => Ok(dimensions),
    }
}

/// The values of a datum and how often each: of `Value`, or of `Values` and `Counts`.
fn values(metric: &str, datum: &Cbor) -> Result<Vec<(f64, f64)>, Refusal> {
    let wrong = |what: String| Err(invalid(format!("{metric}: {what}")));
    let numbers = |name| -> Result<Vec<f64>, Refusal> {
        let list = datum.get(name).and_then(Cbor::list).unwrap_or_default();
        let numbers = list.iter().map(Cbor::number).collect::<Option<_>>();
        numbers.ok_or_else(|| invalid(format!("{metric}: {name} holds what is no number")))
    };
    let (values, mut counts) = (numbers("Values")?, numbers("Counts")?);
    let single = datum.get("Value").map(Cbor::number);
    let values = match single {
        Some(Some(value)) if values.is_empty() => vec![value],
        None if !values.is_empty() => values,
        _ => return wrong("exactly one of Value and Values must be there".to_owned()),
    };
    if counts.is_empty() {
        counts = vec![1.0; values.len()];
    }
    if values.len() != counts.len() || values.len() > VALUES {
        return wrong(format!(
            "{} Values and {} Counts",
            values.len(),
            counts.len()
        ));
    }
    let most = 2_f64.powi(360);
    if let Some(value) = values.iter().find(|value| !(-most..=most).contains(*value)) {
        return wrong(format!("the value {value}"));
    }
    if let Some(count) = counts.iter().find(|count| !(0.0..=most).contains(*count)) {
        return wrong(format!("the count {count}"));
    }
    Ok(values.into_iter().zip(counts).collect())
}
