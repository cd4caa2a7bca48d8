use graph::{Activations, Head, KvFormat, WeightFormat};
use tempfile::TempDir;

use engine::Demand;

use super::*;
use crate::neff::tests::neff;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 10000, "tie_word_embeddings": true, "vocab_size": 100}"#;

fn decoder() -> model::Decoder {
    model::Decoder::parse(CONFIG.as_bytes()).unwrap()
}

const COMMAND: &str = "appliance prepare --backend neuron --model ./m --target trn1 --tp 2";

fn manifest(context: u32, ranks: u32, modules: Vec<Module>) -> Manifest {
    let compiler = Compiler {
        version: "2.27.5334.0".into(),
        sdk: None,
        target: Target::Trn1,
        lnc: 1,
    };
    Manifest {
        format: FORMAT,
        key: bundle_key(&compiler, &modules),
        model: Identity {
            source: "./m".into(),
            revision: None,
            config: "c".into(),
            weights: "w".into(),
        },
        decoder: facts(&decoder()),
        compiler,
        form: Form {
            ranks,
            weights: WeightFormat::Bf16,
            activations: Activations::Bf16,
            kv: KvFormat::Bf16,
            fp8_max: 240,
            page_tokens: 32,
            pages: 9,
            context,
            candidates: 8,
        },
        modules,
        command: COMMAND.into(),
    }
}

fn decode(rows: u32) -> Bucket {
    Bucket::Step {
        rows,
        tokens: 1,
        pages: 8,
        head: Head::Last,
    }
}

/// A store with these bundles, each of a context, ranks and rows.
struct Shelf {
    _dir: TempDir,
    store: Store,
    bundles: Vec<Bundle>,
}

impl Shelf {
    fn new(kinds: &[(u32, u32, u32)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("store"));
        let mut bundles = Vec::new();
        for &(context, ranks, rows) in kinds {
            let module = keep(&store, context, ranks, rows);
            let manifest = manifest(context, ranks, vec![module]);
            bundles.push(store.publish(&manifest).unwrap());
        }
        Self {
            _dir: dir,
            store,
            bundles,
        }
    }

    fn find(&self, change: impl FnOnce(&mut Need<'_>)) -> Result<Form, String> {
        let (decoder, demand) = (decoder(), demand());
        let mut need = Need {
            source: "./m",
            decoder: &decoder,
            target: Target::Inf2,
            lnc: 1,
            cores: 2,
            weights: None,
            kv: None,
            demand: &demand,
        };
        change(&mut need);
        let found = self.store.find(&need);
        found
            .map(|bundle| bundle.manifest().form.clone())
            .map_err(|error| error.to_string())
    }
}

fn demand() -> Demand {
    Demand {
        context: 4096,
        rows: 16,
        step_tokens: 512,
        kv_tokens: None,
        cores: None,
    }
}

/// Keeps a module as a compiler would have made it.
fn keep(store: &Store, context: u32, ranks: u32, rows: u32) -> Module {
    let hlo = format!("hlo of {context} {ranks} {rows}").into_bytes();
    let bytes = neff(1, &[b"\x1f\x8b", hlo.as_slice()].concat());
    let compiled = Compiled {
        hlo: digest(&hlo),
        arguments: vec!["compile".into()],
        neff: digest(&bytes),
        neff_bytes: bytes.len() as u64,
        seconds: 1.0,
        peak_memory: 2,
    };
    fs::create_dir_all(store.root()).unwrap();
    let path = store.root().join("made.neff");
    fs::write(&path, bytes).unwrap();
    let compiler = manifest(context, ranks, Vec::new()).compiler;
    store.keep(&compiler, &compiled, &hlo, &path).unwrap();
    Module {
        bucket: decode(rows),
        compiled,
        layout: Layout {
            inputs: Vec::new(),
            outputs: Vec::new(),
            aliases: Vec::new(),
        },
    }
}

#[test]
fn a_bundle_is_read_as_it_was_written_and_can_be_moved() {
    let shelf = Shelf::new(&[(256, 1, 4)]);
    let bundle = &shelf.bundles[0];
    assert_eq!(
        bundle.directory().file_name().unwrap(),
        bundle.manifest().key.as_str()
    );
    let again = Bundle::open(bundle.directory()).unwrap();
    assert_eq!(again.manifest(), bundle.manifest());
    // Elsewhere, alone: the store is no part of it.
    let elsewhere = tempfile::tempdir().unwrap();
    for file in fs::read_dir(bundle.directory()).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, elsewhere.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::remove_dir_all(shelf.store.root()).unwrap();
    let moved = Bundle::open(elsewhere.path()).unwrap();
    assert_eq!(
        moved.neff(decode(4)),
        elsewhere.path().join("decode-4x8.neff")
    );
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 3);
}

#[track_caller]
fn check_damage(damage: impl FnOnce(&Bundle), told: &[&str]) {
    let shelf = Shelf::new(&[(256, 1, 4)]);
    damage(&shelf.bundles[0]);
    let error = Bundle::open(shelf.bundles[0].directory())
        .unwrap_err()
        .to_string();
    for word in told {
        assert!(error.contains(word), "{word:?} in {error}");
    }
}

/// Writes another file in place of this one, so that what shares its bytes is left.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn edit(bundle: &Bundle, change: impl FnOnce(&mut Value)) {
    let path = bundle.directory().join(MANIFEST);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn damage_is_named_by_file_with_the_command_that_mends_it() {
    let neff_of = |bundle: &Bundle| bundle.neff(decode(4));
    check_damage(
        |bundle| replace(&neff_of(bundle), b"other"),
        &["decode-4x8.neff is damaged", "SHA-256", COMMAND],
    );
    check_damage(
        |bundle| fs::remove_file(neff_of(bundle)).unwrap(),
        &["cannot read", "decode-4x8.neff", COMMAND],
    );
    check_damage(
        |bundle| replace(&bundle.hlo(decode(4)), b"other"),
        &["decode-4x8.hlo.pb is damaged", COMMAND],
    );
    check_damage(
        |bundle| fs::remove_file(bundle.directory().join(MANIFEST)).unwrap(),
        &["not finished", "appliance prepare"],
    );
    check_damage(
        |bundle| fs::write(bundle.directory().join(MANIFEST), "{").unwrap(),
        &["manifest.json cannot be used", "not JSON"],
    );
    check_damage(
        |bundle| edit(bundle, |value| value["format"] = 99.into()),
        &["its format is 99, not 1", COMMAND],
    );
    check_damage(
        |bundle| edit(bundle, |value| value["compiler"]["lnc"] = 2.into()),
        &["its key is", COMMAND],
    );
    check_damage(
        |bundle| edit(bundle, |value| value["form"] = 3.into()),
        &["manifest.json cannot be used", COMMAND],
    );
}

#[test]
fn a_neff_for_another_core_is_refused() {
    let shelf = Shelf::new(&[(256, 1, 4)]);
    let bundle = &shelf.bundles[0];
    let bytes = neff(2, b"\x1f\x8b");
    replace(&bundle.neff(decode(4)), &bytes);
    edit(bundle, |value| {
        value["modules"][0]["compiled"]["neff"] = digest(&bytes).into()
    });
    let error = Bundle::open(bundle.directory()).unwrap_err().to_string();
    assert!(error.contains("2 physical cores"), "{error}");
}

#[test]
fn what_was_compiled_is_found_again_unless_it_is_damaged() {
    let shelf = Shelf::new(&[(256, 1, 4)]);
    let Manifest {
        compiler, modules, ..
    } = shelf.bundles[0].manifest();
    let Compiled { hlo, arguments, .. } = &modules[0].compiled;
    let find = |compiler: &Compiler, hlo: &str, arguments: &[String]| {
        shelf.store.compiled(compiler, hlo, arguments)
    };
    assert_eq!(
        find(compiler, hlo, arguments).as_ref(),
        Some(&modules[0].compiled)
    );
    let other = Compiler {
        version: "2.28.1.0".into(),
        ..compiler.clone()
    };
    assert_eq!(find(&other, hlo, arguments), None);
    assert_eq!(find(compiler, "other", arguments), None);
    assert_eq!(find(compiler, hlo, &["-O1".into()]), None);
    let key = module_key(compiler, hlo, arguments);
    replace(
        &shelf
            .store
            .root()
            .join("compiled")
            .join(key)
            .join("module.neff"),
        b"half",
    );
    assert_eq!(find(compiler, hlo, arguments), None);
}

#[test]
fn the_bundle_that_comes_nearest_to_the_demand_is_taken() {
    let shelf = Shelf::new(&[
        (256, 1, 4),
        (8192, 1, 4),
        (8192, 1, 16),
        (4096, 2, 64),
        (8192, 4, 64),
    ]);
    let form = shelf.find(|_| {}).unwrap();
    assert_eq!(
        (form.context, form.ranks),
        (4096, 2),
        "enough of both, and more ranks"
    );
    let form = shelf.find(|need| need.cores = 1).unwrap();
    assert_eq!((form.context, form.ranks), (8192, 1));
    // A directory that is a bundle is a store of one.
    let one = Shelf {
        store: Store::new(shelf.bundles[0].directory().to_owned()),
        ..shelf
    };
    assert_eq!(one.find(|_| {}).unwrap().context, 256);
}

#[test]
fn no_bundle_is_said_with_the_reason_and_the_command_that_makes_one() {
    let shelf = Shelf::new(&[(256, 2, 4)]);
    let check = |change: fn(&mut Need<'_>), told: &str| {
        let error = shelf.find(change).unwrap_err();
        assert!(error.contains(told), "{error}");
        let command = "appliance prepare --backend neuron --model ./m --target ";
        assert!(error.contains(command), "{error}");
    };
    check(|need| need.target = Target::Trn2, "is for trn1, not trn2");
    check(|need| need.lnc = 2, "logical cores of 1 physical cores");
    check(|need| need.cores = 1, "needs 2 cores, and 1 are free");
    check(
        |need| need.cores = 1,
        "--target inf2 --lnc 1 --tp 1 --max-context 4096",
    );
    check(
        |need| need.weights = Some(WeightFormat::Fp8),
        "holds weights as bf16, not fp8",
    );
    check(
        |need| need.kv = Some(KvFormat::Fp8),
        "holds keys and values as bf16, not fp8",
    );
    let mut other = decoder();
    other.norm_epsilon = 1.0;
    let told = shelf
        .find(|need| need.decoder = Box::leak(Box::new(other)))
        .unwrap_err();
    assert!(told.contains("its norm_epsilon is"), "{told}");
    let empty = Shelf::new(&[]);
    let told = empty.find(|_| {}).unwrap_err();
    assert!(told.contains("it holds none at all"), "{told}");
}

#[test]
fn what_comes_in_as_data_is_no_fact_of_a_module() {
    let mut other = decoder();
    other.tied_head = !other.tied_head;
    other.context = 1;
    other.attention.rope.theta = 7.0;
    assert_eq!(facts(&other), facts(&decoder()));
    other.attention.window = Some(9);
    assert_ne!(facts(&other), facts(&decoder()));
}

#[test]
fn a_store_that_is_elsewhere_brings_what_it_lacks() {
    let shelf = Shelf::new(&[(128, 1, 4)]);
    let there = shelf.store.root().to_owned();
    let key = shelf.bundles[0].manifest().key.clone();
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("copy");
    fs::create_dir_all(here.join(&key)).unwrap();
    fs::copy(
        there.join(&key).join(MANIFEST),
        here.join(&key).join(MANIFEST),
    )
    .unwrap();
    let brought = std::sync::Arc::new(std::sync::Mutex::new(0));
    let count = std::sync::Arc::clone(&brought);
    let bring = move |name: &Path, to: &Path| {
        *count.lock().unwrap() += 1;
        fs::copy(there.join(name), to).map(drop)
    };
    let store = Store::copy_of(
        "s3://bucket/a".to_owned(),
        here.clone(),
        std::sync::Arc::new(bring),
    );
    let (decoder, demand) = (decoder(), demand());
    let need = Need {
        source: "./m",
        decoder: &decoder,
        target: Target::Inf2,
        lnc: 1,
        cores: 2,
        weights: None,
        kv: None,
        demand: &demand,
    };
    let files = || *brought.lock().unwrap();
    let bundle = store.find(&need).unwrap();
    assert_eq!(bundle.directory(), here.join(&key));
    assert_eq!(files(), 2, "the NEFF and the HLO");
    store.find(&need).unwrap();
    assert_eq!(files(), 2, "what is here is not brought again");
    fs::write(bundle.neff(decode(4)), "torn").unwrap();
    store.find(&need).unwrap();
    assert_eq!(files(), 3, "what is damaged is");
    let refused = store
        .find(&Need { cores: 0, ..need })
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("s3://bucket/a holds no bundle"),
        "{refused}"
    );
    assert!(refused.ends_with("--artifacts s3://bucket/a"), "{refused}");
}

#[test]
fn an_identity_tells_models_apart() {
    let dir = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let at = dir.path().join("snapshots").join(commit);
    fs::create_dir_all(&at).unwrap();
    fs::write(at.join("config.json"), "{}").unwrap();
    fs::write(at.join("model.safetensors"), "12345").unwrap();
    let identity = Identity::of("hf://a/b".into(), &at).unwrap();
    assert_eq!(identity.revision.as_deref(), Some(commit));
    fs::write(at.join("tokenizer.json"), "{}").unwrap();
    assert_eq!(Identity::of("hf://a/b".into(), &at).unwrap(), identity);
    fs::write(at.join("model.safetensors"), "123456").unwrap();
    assert_ne!(Identity::of("hf://a/b".into(), &at).unwrap(), identity);
    assert!(Identity::of("x".into(), dir.path()).is_err());
}

#[test]
fn a_second_that_prepares_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("store"));
    let first = store.lock(|| panic!("nobody has it")).unwrap();
    fs::write(store.work().join("litter"), "").unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| store.lock(|| said.send(()).unwrap()).map(drop));
        heard.recv().unwrap();
        assert!(store.work().join("litter").exists());
        drop(first);
        second.join().unwrap().unwrap();
    });
    assert!(
        !store.work().join("litter").exists(),
        "what was left is cleared away"
    );
}

#[test]
fn compilers_of_a_run_that_was_killed_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("store"));
    let job = store.work().join("1-1");
    fs::create_dir_all(&job).unwrap();
    let mut left = std::process::Command::new("sleep")
        .arg("600")
        .current_dir(job)
        .spawn()
        .unwrap();
    store.lock(|| {}).unwrap();
    let status = left.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
}
