//! A shell script stands in for the compiler: each NEFF holds the HLO that it was made from.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use engine::Demand;
use graph::{Activations, KvFormat, Target, WeightFormat};
use tempfile::TempDir;

use super::*;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000, "tie_word_embeddings": true, "vocab_size": 128}"#;

/// Writes a NEFF whose header says 1024 bytes of header and nothing else, then a gzip stream.
const COMPILE: &str = r#"
[ "$1" = --version ] && { echo 'NeuronX Compiler version 2.27.5334.0+x'; exit; }
[ -e $here/fail ] && grep -q "$(cat $here/fail)" graph.hlo && { echo told; exit 1; }
echo "$@" >> $here/log
{ printf '\0\0\0\0\0\0\0\0\0\004\0\0\0\0\0\0'; head -c 1008 /dev/zero; gzip -c graph.hlo; } > graph.neff"#;

struct Bench {
    dir: TempDir,
    decoder: Decoder,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (program, part) = (dir.path().join("neuronx-cc"), dir.path().join("part"));
        let script = format!("#!/bin/sh\nhere={}\n{COMPILE}\n", dir.path().display());
        fs::write(&part, script).unwrap();
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(part, program).unwrap();
        let decoder = Decoder::parse(CONFIG.as_bytes()).unwrap();
        Self { dir, decoder }
    }

    fn prepare(
        &self,
        change: impl FnOnce(&mut Request<'_>),
    ) -> (Result<Bundle, PrepareError>, String) {
        let stop = AtomicBool::new(false);
        let mut request = Request {
            decoder: &self.decoder,
            identity: Identity {
                source: "./m".into(),
                revision: None,
                config: String::new(),
                weights: String::new(),
            },
            wish: wish(),
            store: Store::new(self.dir.path().join("store")),
            settings: Settings {
                program: self.dir.path().join("neuronx-cc").into(),
                ..Settings::default()
            },
            command: "appliance prepare".into(),
            stop: &stop,
        };
        change(&mut request);
        loop {
            let mut told = String::new();
            let result = prepare(&request, &mut |event| told += &word(&event));
            match result {
                // See the tests of compile: another test's child may hold the script open.
                Err(PrepareError::Compile(CompileError::Program { why, .. }))
                    if why.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                result => return (result, told),
            }
        }
    }

    fn bundle(&self, change: impl FnOnce(&mut Request<'_>)) -> (Bundle, String) {
        let (result, told) = self.prepare(change);
        (result.unwrap_or_else(|error| panic!("{error}")), told)
    }

    /// How often the compiler compiled.
    fn runs(&self) -> usize {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().count()
    }

    /// Modules whose bytes have this word are refused from now on.
    fn fail(&self, word: &str) {
        fs::write(self.dir.path().join("fail"), word).unwrap();
    }
}

fn wish() -> Wish {
    Wish {
        target: Target::Trn2,
        lnc: None,
        ranks: 2,
        weights: WeightFormat::Bf16,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        demand: Demand {
            context: 256,
            rows: 4,
            step_tokens: 64,
            kv_tokens: None,
            cores: None,
        },
        candidates: Some(8),
        page_tokens: Some(16),
        kv_pages: Some(32),
        decode_rows: Some(vec![4]),
        prefill_tokens: Some(vec![32]),
        context_pages: Some(vec![16]),
        embeddings: false,
    }
}

/// A letter for each event, what is compiled or kept by its first letter.
fn word(event: &Event<'_>) -> String {
    match event {
        Event::Planned(_) => "P".into(),
        Event::Waiting => "W".into(),
        Event::Compiler(version) => format!(" {version}"),
        Event::Kept(module) => format!(" kept:{module}"),
        Event::Started(_) => String::new(),
        Event::Again { module, .. } => format!(" again:{module}"),
        Event::Compiled { module, .. } => format!(" done:{module}"),
        Event::Failed { module, error } => format!(" failed:{module}:{error}"),
    }
}

#[test]
fn a_bundle_says_all_that_a_server_must_know() {
    let bench = Bench::new();
    let (bundle, told) = bench.bundle(|_| {});
    assert!(told.starts_with("P 2.27.5334.0+x"), "{told}");
    let opened = Bundle::open(bundle.directory()).unwrap();
    assert_eq!(opened.manifest(), bundle.manifest());
    let manifest = opened.manifest();
    let names: Vec<_> = manifest
        .modules
        .iter()
        .map(|module| module.bucket.name())
        .collect();
    let expected = [
        "decode-4x16",
        "prefill-1x32x0",
        "prefill-1x32x16",
        "prefill-1x64x16-each",
        "copy-8",
    ];
    assert_eq!(names, expected);
    assert_eq!((manifest.form.ranks, manifest.form.pages), (2, 33));
    let Compiler {
        sdk, target, lnc, ..
    } = &manifest.compiler;
    assert_eq!(
        (sdk.as_deref(), *target, *lnc),
        (Some("2.32.0"), Target::Trn2, 2)
    );
    for module in &manifest.modules {
        let lowered = graph::lower(&bench.decoder, &manifest.form, module.bucket).unwrap();
        assert_eq!(module.layout, lowered.layout);
        assert_eq!(module.compiled.hlo, digest(&lowered.proto.to_bytes()));
        assert!(module.compiled.arguments.contains(&"--lnc=2".to_owned()));
    }
}

#[test]
fn what_is_there_is_not_compiled_again() {
    let bench = Bench::new();
    let (first, _) = bench.bundle(|_| {});
    assert_eq!(bench.runs(), 5);
    let (again, told) = bench.bundle(|_| {});
    assert_eq!((bench.runs(), again.directory()), (5, first.directory()));
    assert_eq!(told.matches("kept:").count(), 5, "{told}");
    // Another set of buckets shares those that are the same.
    let (other, _) = bench.bundle(|request| request.wish.decode_rows = Some(vec![1, 4]));
    assert_eq!(bench.runs(), 6);
    assert_ne!(other.directory(), first.directory());
    Bundle::open(other.directory()).unwrap();
    // Other arguments make other modules.
    bench.bundle(|request| {
        request.settings.extra = vec![compile::Extra {
            modules: "decode".into(),
            arguments: vec!["-O1".into()],
        }];
    });
    assert_eq!(bench.runs(), 7);
}

#[test]
fn what_is_damaged_is_compiled_again() {
    let bench = Bench::new();
    let (bundle, _) = bench.bundle(|_| {});
    // Both names of the file.
    let neff = bundle.neff(bundle.manifest().modules[0].bucket);
    fs::write(&neff, "damaged").unwrap();
    assert!(Bundle::open(bundle.directory()).is_err());
    let (bundle, _) = bench.bundle(|_| {});
    assert_eq!(bench.runs(), 6);
    Bundle::open(bundle.directory()).unwrap();
}

#[test]
fn one_that_fails_leaves_the_others_for_the_next_run() {
    let bench = Bench::new();
    // Only the modules of steps have a table of cosines.
    bench.fail("rope.cos");
    let (result, told) = bench.prepare(|_| {});
    let error = result.unwrap_err().to_string();
    let names = "decode-4x16, prefill-1x32x0, prefill-1x32x16, prefill-1x64x16-each";
    assert!(
        error.contains(names) && error.contains("the other 1 modules are kept"),
        "{error}"
    );
    assert_eq!(told.matches("failed:").count(), 4, "{told}");
    assert!(told.contains("told\n"), "what the compiler said: {told}");
    let manifests = fs::read_dir(bench.dir.path().join("store")).unwrap();
    let has_manifest = |path: &Path| path.join(artifact::MANIFEST).exists();
    assert!(!manifests.flatten().any(|entry| has_manifest(&entry.path())));
    fs::remove_file(bench.dir.path().join("fail")).unwrap();
    let (_, told) = bench.bundle(|_| {});
    assert!(told.contains("kept:copy-8"), "{told}");
    assert_eq!(bench.runs(), 5);
}

#[test]
fn a_stop_keeps_what_is_done() {
    let bench = Bench::new();
    let (result, _) = bench.prepare(|request| {
        let stopped: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
        request.stop = stopped;
    });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("goes on from here"), "{error}");
}

#[test]
fn what_modules_need_is_taken_off_the_cache() {
    let config = CONFIG
        .replace("256", "131072")
        .replace("\"hidden_size\": 64", "\"hidden_size\": 4096");
    let decoder = Decoder::parse(config.as_bytes()).unwrap();
    let mut wish = wish();
    wish.kv_pages = None;
    wish.demand.context = 131_072;
    wish.demand.rows = 4096;
    wish.page_tokens = Some(128);
    wish.context_pages = Some(vec![1024]);
    let before = Plan::new(&decoder, &wish).unwrap();
    let summary = survey(&decoder, &wish).unwrap();
    let (before, after) = (before.form.pages, summary.plan.form.pages);
    assert!(after <= before && after > 1024, "{after} of {before}");
    assert!(summary.memory.fit(Target::Trn2, 2).is_ok());
    let table = summary.to_string();
    assert!(
        table.contains("decode-4x1024") && table.contains("scratchpad"),
        "{table}"
    );
}
