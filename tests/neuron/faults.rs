//! What goes wrong on a device while clients are served over HTTP: what each of them gets, what the
//! process does, and that no token is ever wrong.
//!
//! Where tokens matter the stand-in computes a model in which every token depends on all before it, so
//! that a cache or a result that a failed step left behind shows at once; what is right the CPU backend
//! says. Where only the end matters it gives the same token for ever, which starts sooner.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use appliance_tests::neuron::fresh;
use appliance_tests::server::{appliance_with, scratch_file};
use appliance_tests::{Connection, Fake, Model, PATIENCE, Request, Server, eventually};
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

/// Clients that ask one request after the other. Every fourth wants its answers whole.
const CLIENTS: usize = 8;

/// Tokens of an answer.
const TOKENS: usize = 24;

/// How a model is prepared: few modules, all in F32.
const FORM: [&str; 12] = [
    "--max-context",
    "256",
    "--decode-rows",
    "8",
    "--prefill-tokens",
    "16",
    "--context-pages",
    "16",
    "--kv-pages",
    "257",
    "--candidates",
    "32",
];

/// How long the process may take to end once its device is lost: to tell the clients, and a machine that
/// others use too.
const END: Duration = Duration::from_secs(60);

/// Prompts, and what comes after each.
type Known = Vec<(Vec<u32>, Vec<u64>)>;

/// Prompts that share what a cache holds, and are longer than a chunk.
fn prompts() -> Vec<Vec<u32>> {
    let prompt = |number: u32| {
        let own = (0..20 + 3 * number).map(|at| (at * 7 + number * 31) % 250);
        (0..35).map(|at| (at * 11) % 250).chain(own).collect()
    };
    (0..6).map(prompt).collect()
}

/// What the CPU backend answers.
fn computed() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let flags = ["--backend", "cpu", "--dtype", "f32"];
        let server = Server::start(&Model::random(), &flags);
        let prompts = prompts().into_iter();
        let known = prompts.map(|prompt| {
            let answer = server.ask(COMPLETIONS, &body(&server, &prompt, false));
            let tokens = ids(&answer["choices"][0]);
            assert_eq!(tokens.len(), TOKENS);
            (prompt, tokens)
        });
        known.collect()
    })
}

/// What the stand-in gives where it computes nothing: an `a` for ever.
fn plausible() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let prompts = prompts().into_iter();
        let known = prompts.map(|prompt| (prompt, vec![u64::from(b'a'); TOKENS]));
        known.collect()
    })
}

fn body(server: &Server, prompt: &[u32], stream: bool) -> Value {
    json!({
        "model": server.model,
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": true,
        "return_token_ids": true,
        "stream": stream,
    })
}

fn ids(choice: &Value) -> Vec<u64> {
    let ids = choice["token_ids"].as_array().into_iter().flatten();
    ids.map(|id| id.as_u64().expect("an id")).collect()
}

/// What a client got for a request.
#[derive(Clone, PartialEq, Debug)]
enum Got {
    /// All of it, and all of it right.
    Whole,
    /// An error in the place of the rest of it; what came before was right.
    Told(String),
    /// A status that says that it was not taken on.
    Refused(u16, String),
    /// Nobody to ask.
    Nobody,
}

/// A server on a device that fails when it is told to.
struct Bench {
    server: Server,
    known: &'static Known,
    faults: PathBuf,
    journal: PathBuf,
    injected: AtomicUsize,
}

impl Bench {
    /// On a device that computes, or on one that does not.
    fn start(fake: &Fake, ranks: u32, known: &'static Known, flags: &[&str]) -> Self {
        static BENCHES: AtomicUsize = AtomicUsize::new(0);
        let number = BENCHES.fetch_add(1, Ordering::Relaxed);
        let store = prepared(fake, ranks);
        let faults = scratch_file(&format!("faults-{number}"), "");
        let journal = scratch_file(&format!("journal-{number}"), "");
        let mut fake = fake
            .clone()
            .with("FAKE_NRT_FAULTS", &faults)
            .with("FAKE_NRT_JOURNAL", &journal);
        if std::ptr::eq(known, plausible()) {
            fake = fake
                .with("FAKE_NRT_LATENCY_US", "2000")
                .with("APPLIANCE_SELF_TEST", "token");
        }
        let artifacts = store.to_str().expect("paths of tests are text");
        let mut all = vec!["--backend", "neuron", "--artifacts", artifacts];
        all.extend(["--max-context", "256", "--max-running", "8"]);
        all.extend(flags);
        Self {
            server: Server::start_with(&fake.environment(), &Model::random(), &all),
            known,
            faults,
            journal,
            injected: AtomicUsize::new(0),
        }
    }

    /// From the next call on these are the faults; calls are counted from here.
    fn inject(&self, rules: &str) {
        // The same rules again are others.
        let number = self.injected.fetch_add(1, Ordering::Relaxed);
        let part = self.faults.with_extension("part");
        fs::write(&part, format!("{rules}\n# {number}\n")).expect("a file under target");
        fs::rename(&part, &self.faults).expect("a rename within target");
    }

    /// How many executions have come to this status, or taken this long.
    fn struck(&self, by: By) -> usize {
        let calls = ::nrt::journal::read(&self.journal).expect("a journal");
        let struck = calls.iter().filter(|call| {
            call.call == "execute"
                && match by {
                    By::Status(status) => call.status == status,
                    By::Stall(stall) => Duration::from_micros(call.took_us) >= stall,
                }
        });
        struck.count()
    }

    /// Has clients ask while `act` runs, and gives what they got.
    fn under_load(&self, act: impl FnOnce(&Load)) -> Vec<Got> {
        let load = Load::default();
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let load = &load;
                scope.spawn(move || {
                    // One that finds something wrong ends the load for all.
                    let _ending = Ending(load);
                    self.keep_asking(client, load);
                });
            }
            // However it ends, nobody asks any more.
            let _ending = Ending(&load);
            act(&load);
        });
        load.got.into_inner().expect("no client failed")
    }

    fn keep_asking(&self, client: usize, load: &Load) {
        for request in 0.. {
            let known = &self.known[(client * 5 + request) % self.known.len()];
            let got = self.ask(known, client % 4 != 3, load);
            let is_whole = got == Got::Whole;
            load.got.lock().expect("no client failed").push(got);
            if load.over.load(Ordering::Relaxed) || self.server.ended().is_some() {
                return;
            }
            if !is_whole {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// One request: anything but what [`Got`] lists fails the test.
    fn ask(&self, (prompt, tokens): &(Vec<u32>, Vec<u64>), stream: bool, load: &Load) -> Got {
        let request = Request::post(COMPLETIONS, &body(&self.server, prompt, stream));
        let Ok(mut connection) = Connection::open(self.server.address) else {
            return Got::Nobody;
        };
        if connection.send(&request).is_err() {
            return Got::Nobody;
        }
        if stream {
            // Cut off before the head: nothing was promised yet.
            let Ok(mut stream) = connection.stream() else {
                return Got::Nobody;
            };
            if stream.head.status != 200 {
                return refused(stream.head.status, &stream.body());
            }
            let mut come = Vec::new();
            while let Some(chunk) = stream.next_chunk().expect("no stream ends without a word") {
                if chunk["error"].is_object() {
                    assert_eq!(stream.next_chunk().expect("an end"), None, "after {chunk}");
                    return Got::Told(chunk["error"]["message"].to_string());
                }
                come.extend(ids(&chunk["choices"][0]));
                assert_eq!(come, tokens[..come.len().min(TOKENS)], "{prompt:?}");
                load.tokens.fetch_add(1, Ordering::Relaxed);
            }
            assert_eq!(come.len(), TOKENS, "{prompt:?}");
            return Got::Whole;
        }
        let Ok(response) = connection.response() else {
            return Got::Nobody;
        };
        if response.status() != 200 {
            return refused(response.status(), &response.text());
        }
        assert_eq!(ids(&response.json()["choices"][0]), *tokens, "{prompt:?}");
        load.tokens.fetch_add(TOKENS, Ordering::Relaxed);
        Got::Whole
    }

    /// After a fault that has passed: all that is asked is answered right, and nothing is left of it.
    fn is_well(&self) {
        self.inject("");
        let load = Load::default();
        for known in self.known {
            for stream in [true, false] {
                assert_eq!(self.ask(known, stream, &load), Got::Whole);
            }
        }
        assert_eq!(self.server.get("/health").status(), 200);
        assert_eq!(self.server.get("/live").status(), 200);
        self.server.idle_within(PATIENCE);
        let phase = [("phase", "ready")];
        assert_eq!(
            self.server.metrics().labelled("appliance_phase", &phase),
            1.0
        );
    }

    /// Requests that the server has counted as failed.
    fn errors(&self) -> usize {
        let reason = [("finished_reason", "error")];
        let metrics = self.server.metrics();
        let errors = metrics.labelled("vllm:request_success_total", &reason);
        let whole = format!("{errors:.0}");
        whole.parse().expect("a count")
    }

    /// Has a fault strike so often, and tokens come after it.
    fn strike(&self, load: &Load, rules: &str, by: By, times: usize) {
        let before = self.struck(by);
        self.inject(rules);
        eventually("the fault has struck", || {
            let ended = self.server.ended();
            assert_eq!(ended, None, "{rules}: {}", self.server.log());
            self.struck(by) >= before + times
        });
        load.flows(50);
    }

    /// The device is lost by `rules` while clients ask: all who have an answer in the making are told with
    /// all of `words`, those who come later are refused or find nobody, and the process ends with 70.
    fn is_lost(&self, rules: &str, words: &[&str]) {
        let got = self.under_load(|load| {
            load.flows(100);
            self.inject(rules);
            let code = self.server.exit_code_within(END);
            assert_eq!(code, 70, "{rules}: {}", self.server.log());
        });
        let log = self.server.log();
        let failed: Vec<_> = got
            .iter()
            .filter_map(|got| match got {
                Got::Told(why) | Got::Refused(500, why) => Some(why),
                // By an engine that has ended with another's device, or nobody was there.
                Got::Whole | Got::Refused(..) | Got::Nobody => None,
            })
            .collect();
        let told = got.iter().filter(|got| matches!(got, Got::Told(_)));
        let told = told.count();
        assert!((1..=CLIENTS).contains(&told), "{rules}: {told} of {got:?}");
        for word in words {
            let all = failed.iter().all(|why| why.contains(word));
            assert!(all, "{rules}: {word:?} in {failed:?}");
            let last = log.trim_end().lines().last().unwrap_or_default();
            assert!(last.contains(word), "{rules}: {word:?} in {log}");
        }
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// How a fault shows in the journal.
#[derive(Clone, Copy, Debug)]
enum By {
    Status(u32),
    Stall(Duration),
}

/// What clients have had so far.
#[derive(Default)]
struct Load {
    tokens: AtomicUsize,
    over: AtomicBool,
    got: Mutex<Vec<Got>>,
}

impl Load {
    /// Waits until so many more tokens have come.
    fn flows(&self, tokens: usize) {
        let until = self.tokens.load(Ordering::Relaxed) + tokens;
        eventually("tokens come", || {
            self.tokens.load(Ordering::Relaxed) >= until || self.over.load(Ordering::Relaxed)
        });
    }
}

/// Ends the load when dropped.
struct Ending<'a>(&'a Load);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn refused(status: u16, body: &str) -> Got {
    assert!(matches!(status, 500 | 503), "{status}: {body}");
    let body: Value = serde_json::from_str(body).expect("an error is JSON");
    let why = body["error"]["message"].as_str().expect("a message");
    Got::Refused(status, why.to_owned())
}

/// An empty directory.
fn directory(name: &str) -> PathBuf {
    let path = fresh(name);
    fs::create_dir_all(&path).expect("a directory under target");
    path
}

fn prepared(fake: &Fake, ranks: u32) -> PathBuf {
    fake.prepared(&Model::random(), ranks, &FORM)
}

#[test]
fn faults_that_pass_are_noticed_by_nobody_and_a_request_at_fault_fails_alone() {
    let Some(fake) = Fake::found() else { return };
    let bench = Bench::start(&fake, 1, computed(), &[]);
    nobody_notices_what_passes(&bench);
    bench.is_well();
    assert_eq!(bench.errors(), 0);
    let failed = a_step_that_fails_costs_at_most_one_request(&bench);
    bench.is_well();
    assert_eq!(bench.errors(), failed);
    a_request_at_fault_fails_alone(&bench);
    bench.is_well();
    assert_eq!(bench.errors(), failed + 1);
    let failed = failed + 1 + whom_a_fault_strikes_again_is_told(&bench);
    bench.is_well();
    assert_eq!(bench.errors(), failed);
}

fn nobody_notices_what_passes(bench: &Bench) {
    // Tried again by the rank, and then by the engine.
    let lines = (4..9).map(|at| format!("execute status=1005 at={at}\n"));
    let busy: String = lines.collect();
    let got = bench.under_load(|load| {
        load.flows(50);
        bench.strike(load, "execute status=7 at=4", By::Status(7), 1);
        bench.strike(load, "execute status=1005 at=4", By::Status(1005), 1);
        bench.strike(load, &busy, By::Status(1005), 5);
        let stall = By::Stall(Duration::from_millis(400));
        bench.strike(load, "execute stall=400ms at=4", stall, 1);
    });
    assert!(got.iter().all(|got| *got == Got::Whole), "{got:?}");
}

/// The step is run again by halves, and then all its rows are well; only a row that was alone in its
/// step is taken at the device's word. How many failed.
fn a_step_that_fails_costs_at_most_one_request(bench: &Bench) -> usize {
    let faults = [
        ("execute status=1002 at=4", 1002),
        ("execute status=1003 at=4", 1003),
        ("execute status=1006 at=4", 1006),
        ("execute status=1006 at=3 model=decode", 1006),
        ("nan at=4", 1003),
        ("nan at=3 model=prefill", 1003),
    ];
    let mut failed = 0;
    for (rules, status) in faults {
        let got = bench.under_load(|load| {
            load.flows(20);
            bench.strike(load, rules, By::Status(status), 1);
        });
        let told = told(&got, &format!("({status})"));
        assert!(told <= 1, "{rules}: {got:?}");
        failed += told;
    }
    failed
}

/// Scores of a prompt are computed by a module of their own.
fn a_request_at_fault_fails_alone(bench: &Bench) {
    let got = bench.under_load(|load| {
        bench.inject("execute status=1006 model=each");
        load.flows(50);
        let mut body = body(&bench.server, &bench.known[0].0, false);
        body["echo"] = true.into();
        body["logprobs"] = 1.into();
        let response = bench.server.post(COMPLETIONS, &body);
        assert_eq!(response.status(), 500, "{}", response.text());
        let error = response.json()["error"].clone();
        assert_eq!(error["type"], "server_error", "{error}");
        let why = error["message"].as_str().expect("a message");
        assert!(why.contains("NRT_EXEC_OOB (1006)"), "{why}");
        load.flows(50);
    });
    assert!(got.iter().all(|got| *got == Got::Whole), "{got:?}");
}

/// A row that is looked for by halves may be struck again when it is alone. How many were.
fn whom_a_fault_strikes_again_is_told(bench: &Bench) -> usize {
    let got = bench.under_load(|load| {
        bench.inject("execute status=1003 every=3");
        load.flows(200);
        bench.inject("");
    });
    told(&got, "NRT_EXEC_COMPLETED_WITH_NUM_ERR (1003)")
}

/// How many were told `why`; all others have all of it.
fn told(got: &[Got], why: &str) -> usize {
    let failed: Vec<_> = got.iter().filter(|got| **got != Got::Whole).collect();
    for got in &failed {
        let (Got::Told(told) | Got::Refused(500, told)) = got else {
            panic!("{got:?}");
        };
        assert!(told.contains(why), "{told}");
    }
    failed.len()
}

#[test]
fn a_device_that_is_lost_tells_every_client_and_ends_the_process() {
    /// Statuses after which nobody knows what the device would do, and what is to be done.
    const LOST: [(u32, &str); 16] = [
        (1, "restart the process"),
        (4, "--kv-pages"),
        (5, "restart the process"),
        (6, "replace"),
        (13, "report it"),
        (14, "report it"),
        (101, "restart the process"),
        (1004, "restart the process"),
        (1200, "restart the process"),
        (1201, "replace"),
        (1202, "replace"),
        (1203, "replace"),
        (1204, "NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0"),
        (1205, "modprobe neuron"),
        (1206, "all ranks"),
        (4711, "restart the process"),
    ];
    let Some(fake) = Fake::found() else { return };
    for (status, to_do) in LOST {
        let bench = Bench::start(&fake, 1, plausible(), &[]);
        let number = status.to_string();
        let rules = format!("execute status={status} at=5");
        bench.is_lost(
            &rules,
            &["the device is lost", "nrt_execute", &number, to_do],
        );
    }
}

#[test]
fn a_call_that_hangs_is_told_after_the_deadline_whatever_hangs_with_it() {
    let Some(fake) = Fake::found() else { return };
    let flags = ["--device-timeout", "2s"];
    let hung = Bench::start(&fake, 1, plausible(), &flags);
    hung.is_lost(
        "execute hang at=5",
        &["the device is lost", "no answer from rank 0 of 1"],
    );
    assert!(hung.server.log().contains("The threads: "));
    // The step behind one that has failed hangs, and so does letting go of the device.
    let failed = Bench::start(&fake, 1, plausible(), &[]);
    failed.is_lost(
        "execute status=5 at=5\nexecute hang from=6\nunload hang",
        &["the device is lost", "NRT_TIMEOUT (5)"],
    );
    let writing = Bench::start(&fake, 1, plausible(), &[]);
    writing.is_lost(
        "write status=1203 at=5",
        &["nrt_tensor_write", "1203", "replace"],
    );
    let reading = Bench::start(&fake, 1, plausible(), &[]);
    reading.is_lost(
        "read status=6 at=5",
        &["nrt_tensor_read", "NRT_HW_ERROR (6)", "replace"],
    );
}

#[test]
fn ranks_that_are_out_of_step_give_no_token() {
    let Some(fake) = Fake::found() else { return };
    let bench = Bench::start(&fake, 2, computed(), &["--device-timeout", "3s"]);
    let got = bench.under_load(|load| {
        load.flows(50);
        let passing = [
            ("execute status=1005 at=4", 1005),
            // The others wait for it, and it comes.
            ("execute status=7 at=4 rank=1", 7),
            ("execute stall=300ms at=4 rank=0\nexecute status=7 at=6", 7),
        ];
        for (rules, status) in passing {
            bench.strike(load, rules, By::Status(status), 1);
        }
    });
    assert!(got.iter().all(|got| *got == Got::Whole), "{got:?}");
    bench.is_well();
    assert_eq!(bench.errors(), 0);
    // What one rank did not run the others cannot have run with it.
    bench.is_lost(
        "execute status=1002 at=7 rank=1",
        &["the device is lost", "(1002)"],
    );
}

#[test]
fn a_rank_that_is_lost_takes_the_others_with_it_and_says_why() {
    let Some(fake) = Fake::found() else { return };
    let bench = Bench::start(&fake, 2, plausible(), &["--device-timeout", "2s"]);
    bench.is_lost(
        "execute status=1202 at=9 rank=1\nexecute hang from=10 rank=1",
        &[
            "the device is lost",
            "NRT_EXEC_HW_ERR_NC_UE (1202)",
            "replace",
        ],
    );
}

#[test]
fn a_replica_that_is_lost_takes_the_others_with_it() {
    let Some(fake) = Fake::found() else { return };
    let bench = Bench::start(&fake, 1, plausible(), &["--replicas", "2"]);
    // The other would take longer with what it has than the process has left.
    bench.is_lost(
        "execute status=1201 at=5 core=1\nexecute stall=500ms core=0",
        &["the device is lost", "(1201)"],
    );
}

/// A start that comes to nothing.
struct Start {
    fake: Fake,
    ranks: u32,
    flags: Vec<OsString>,
}

impl Start {
    fn new(fake: &Fake, ranks: u32) -> Self {
        let (fake, flags) = (fake.clone(), Vec::new());
        Self { fake, ranks, flags }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fake = self.fake.with(name, value);
        self
    }

    fn failing(self, rules: &str) -> Self {
        let name = rules.replace([' ', '='], "-");
        let faults = scratch_file(&format!("faults-{name}"), rules);
        let fake = self.fake.with("FAKE_NRT_FAULTS", faults);
        Self { fake, ..self }
    }

    fn flagged(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(OsString::from));
        self
    }

    /// Ends with this code and a line that has all these words. Gives all that was said.
    #[track_caller]
    fn ends(self, code: i32, words: &[&str]) -> String {
        let store = prepared(&self.fake, self.ranks);
        self.ends_with(&store, code, words)
    }

    #[track_caller]
    fn ends_with(self, store: &Path, code: i32, words: &[&str]) -> String {
        let environment = self.fake.environment();
        let variables: Vec<_> = environment
            .iter()
            .map(|(name, value)| (*name, value.to_str().expect("paths of tests are text")))
            .collect();
        let mut args: Vec<OsString> = ["serve", "--backend", "neuron", "--listen", "127.0.0.1:0"]
            .map(OsString::from)
            .into();
        args.extend(["--model".into(), Model::random().path.into()]);
        args.extend(["--artifacts".into(), store.into()]);
        args.extend(["--max-context".into(), "256".into()]);
        args.extend(self.flags);
        let ended = appliance_with(&variables, args);
        let last = ended.stderr.trim_end().lines().last().unwrap_or_default();
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        for word in words {
            assert!(last.contains(word), "{word:?} in {}", ended.stderr);
        }
        ended.stderr
    }
}

#[test]
fn a_device_that_cannot_be_opened_ends_the_start_with_what_to_do() {
    let Some(fake) = Fake::found() else { return };
    let one = || Start::new(&fake, 1);
    let memory = &["NRT_RESOURCE (4)", "--kv-pages"];
    one()
        .failing("tensor_allocate status=4 at=3")
        .ends(64, memory);
    one().failing("load status=4 at=2").ends(64, memory);
    let little = (290_u64 << 20).to_string();
    one().with("FAKE_NRT_HBM_BYTES", &little).ends(64, memory);
    one()
        .failing("load status=2")
        .ends(64, &["(2)", "prepare the model again"]);
    // What may be well next time.
    one()
        .failing("init status=1")
        .ends(70, &["nrt_init", "neuron-ls"]);
    one()
        .failing("load status=1202")
        .ends(70, &["(1202)", "replace"]);
    one()
        .failing("write status=1203 at=6")
        .ends(70, &["writing", "(1203)", "replace"]);
    one()
        .failing("execute status=1200")
        .ends(70, &["warming up", "(1200)", "restart"]);
    let two = Start::new(&fake, 2).failing("load status=1202 rank=1");
    two.ends(70, &["loading a module", "(1202)", "replace"]);
}

#[test]
fn a_bundle_or_runtime_that_does_not_fit_ends_the_start_with_what_to_do() {
    let Some(fake) = Fake::found() else { return };
    let one = || Start::new(&fake, 1);
    let command = "appliance prepare --backend neuron";
    let empty = directory("empty-store");
    one().ends_with(&empty, 64, &["holds none at all", command, "--target trn2"]);
    let other = one().with("FAKE_NRT_INSTANCE", "trn1.2xlarge");
    other.ends(64, &["trn2", command, "--target trn1"]);
    let split = one().with("NEURON_LOGICAL_NC_CONFIG", "1");
    split.ends(64, &["logical", command, "--lnc 1"]);
    let crowded = Start::new(&fake, 2).flagged(&["--replicas", "3"]);
    crowded.ends(64, &["needs 2 cores, and 1 are free", command]);
    one()
        .flagged(&["--replicas", "5"])
        .ends(64, &["5 replicas on 4 cores"]);
    // An older runtime than the compiler refuses what it is given; the log says which they are.
    let older = one()
        .with("FAKE_NRT_VERSION", "2.28.0.0")
        .failing("load status=10");
    let log = older.ends(64, &["(10)", "prepare the model again"]);
    assert!(
        log.contains("runtime=2.28.0.0") && log.contains("compiler=\"2.27"),
        "{log}"
    );
    a_damaged_module_is_named(&fake);
}

fn a_damaged_module_is_named(fake: &Fake) {
    let store = prepared(fake, 1);
    let entries = fs::read_dir(&store).expect("a store");
    let mut entries = entries.map(|entry| entry.expect("an entry").path());
    let bundle = entries.find(|path| path.join("manifest.json").is_file());
    let copy = directory("damaged-store");
    for file in fs::read_dir(bundle.expect("a bundle")).expect("its files") {
        let file = file.expect("a file").path();
        fs::copy(&file, copy.join(file.file_name().expect("a name"))).expect("a copy");
    }
    let neff = copy.join("decode-8x16.neff");
    let mut bytes = fs::read(&neff).expect("a module");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&neff, bytes).expect("a file under target");
    let damaged = ["decode-8x16.neff is damaged", "appliance prepare"];
    Start::new(fake, 1).ends_with(&copy, 64, &damaged);
}

#[test]
fn cores_that_another_process_has_are_said_to_be() {
    let Some(fake) = Fake::found() else { return };
    let machine = directory("machine-for-two");
    let fake = fake.with("FAKE_NRT_DIR", machine);
    let first = Bench::start(&fake, 1, plausible(), &[]);
    Start::new(&fake, 1).ends(70, &["nrt_init", "neuron-ls"]);
    first.is_well();
}
