//! Shell scripts stand in for the compiler: how it ends, what it leaves behind, what it says.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;

use graph::Activations;
use tempfile::TempDir;

use super::*;

/// A directory for jobs, and a script that is run as the compiler.
struct Bench {
    dir: TempDir,
    settings: Settings,
}

impl Bench {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let program = dir.path().join("neuronx-cc");
        // Written beside and renamed: a file that a forked child of another test still has open
        // for writing cannot be run.
        let part = dir.path().join("part");
        let neff = dir.path().join("good.neff");
        fs::write(&neff, crate::neff::tests::neff(1, b"\x1f\x8barchive")).unwrap();
        let here = dir.path().display();
        let script = format!(
            "#!/bin/sh\nhere={here}\ngood() {{ cp $here/good.neff graph.neff; }}\n{script}\n"
        );
        fs::write(&part, script).unwrap();
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&part, &program).unwrap();
        let settings = Settings {
            program: program.into(),
            ..Settings::default()
        };
        Self { dir, settings }
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join(file)).unwrap_or_default()
    }

    /// Compiles modules of these names, each of which holds its name.
    fn run(&self, names: &[&str], stop: &AtomicBool) -> (Result<(), CompileError>, Told) {
        let task = |name: &&str| Task {
            name: (*name).to_owned(),
            hlo: name.as_bytes().to_vec(),
            arguments: vec!["compile".into(), HLO.into()],
        };
        let tasks: Vec<_> = names.iter().map(task).collect();
        let tasks: Vec<_> = tasks.iter().collect();
        let mut told = Told::default();
        let result = busy(|| {
            compile(
                &self.settings,
                &self.work(),
                &tasks,
                stop,
                &mut |task, news| {
                    told.hear(names[task], news);
                    ControlFlow::Continue(())
                },
            )
        });
        (result, told)
    }

    fn compile(&self, names: &[&str]) -> Told {
        let (result, told) = self.run(names, &AtomicBool::new(false));
        result.unwrap();
        told
    }

    fn failure(&self, name: &str) -> String {
        self.compile(&[name])
            .failed
            .remove(name)
            .expect("it failed")
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(fs::read_dir(self.work()).unwrap().count(), 0);
    }
}

/// A program that was just written cannot be run while a child that another test has just forked
/// still holds it open.
fn busy<T>(mut run: impl FnMut() -> Result<T, CompileError>) -> Result<T, CompileError> {
    loop {
        match run() {
            Err(CompileError::Program { why, .. })
                if why.kind() == io::ErrorKind::ExecutableFileBusy => {}
            result => return result,
        }
    }
}

/// What was told of modules, by name.
#[derive(Default)]
struct Told {
    starts: HashMap<String, u32>,
    order: Vec<String>,
    again: Vec<&'static str>,
    done: HashMap<String, u64>,
    failed: HashMap<String, String>,
}

impl Told {
    fn hear(&mut self, name: &str, news: News) {
        match news {
            News::Started => {
                *self.starts.entry(name.to_owned()).or_default() += 1;
                self.order.push(name.to_owned());
            }
            News::Again { why } => self.again.push(why),
            News::Done(product) => {
                assert!(product.neff.is_file());
                self.done.insert(name.to_owned(), product.peak);
            }
            News::Failed(error) => {
                self.failed.insert(name.to_owned(), error.to_string());
            }
        }
    }
}

#[test]
fn a_module_is_compiled_in_a_directory_that_goes_with_it() {
    let bench = Bench::new("mkdir neuronxcc-1; touch $TMPDIR/litter; pwd >> $here/where; good");
    let told = bench.compile(&["a", "b"]);
    assert_eq!(told.done.len(), 2);
    let places = bench.read("where");
    let mut places: Vec<_> = places.lines().collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 2, "each has its own");
    assert!(
        places
            .iter()
            .all(|place| place.starts_with(bench.work().to_str().unwrap()))
    );
    bench.assert_clean();
}

#[test]
fn code_70_is_tried_once_more() {
    let bench = Bench::new("if [ -e $here/once ]; then good; else touch $here/once; exit 70; fi");
    let told = bench.compile(&["a"]);
    assert_eq!((told.starts["a"], told.again.len()), (2, 1));
    assert!(told.done.contains_key("a"));

    let bench = Bench::new("seq 100; echo 'NCC_IXYZ001 broken' >&2; exit 70");
    let told = bench.compile(&["a"]);
    assert_eq!(told.starts["a"], 2);
    let why = &told.failed["a"];
    assert!(
        why.contains("exit code 70") && why.contains("NCC_IXYZ001"),
        "{why}"
    );
    assert!(
        why.contains("\n62\n") && !why.contains("\n61\n"),
        "the last 40 lines: {why}"
    );
    assert!(why.contains("--extra-args 'a=-O1'"), "{why}");
    bench.assert_clean();
}

#[test]
fn other_codes_are_final_and_leave_the_others_running() {
    let bench = Bench::new("if grep -q bad graph.hlo; then echo no such flag; exit 2; fi; good");
    let told = bench.compile(&["good-1", "bad", "good-2"]);
    assert_eq!((told.starts["bad"], told.done.len()), (1, 2));
    assert!(told.failed["bad"].contains("no such flag"));
}

#[test]
fn out_of_memory_is_tried_again_alone_when_the_others_are_done() {
    // What is large fails as long as something runs beside it or is still to run.
    let script = "if grep -q large graph.hlo; then
        [ $(cat $here/small | wc -l) = 3 ] || { echo '[F137] neuronx-cc was forcibly killed'; exit 70; }
        [ $(ls $here/work | wc -l) = 1 ] || exit 3
    else sleep 0.05; echo >> $here/small; fi; good";
    let bench = Bench::new(script);
    fs::write(bench.dir.path().join("small"), "").unwrap();
    let told = bench.compile(&["large", "small-1", "small-2", "small-3"]);
    assert!(told.failed.is_empty(), "{:?}", told.failed);
    assert_eq!((told.starts["large"], told.done.len()), (2, 4));
    assert_eq!(told.order.last().unwrap(), "large");
}

#[test]
fn out_of_memory_alone_says_how_much_to_give() {
    for end in [
        "echo '[F137] killed' > log-neuron-cc.txt; exit 70",
        "kill -9 $$",
        "exit 137",
        "exit 247",
    ] {
        let bench = Bench::new(end);
        let told = bench.compile(&["a"]);
        assert_eq!(told.starts["a"], 2, "{end}");
        let why = &told.failed["a"];
        assert!(why.contains("ran out of memory on a, alone"), "{why}");
        assert!(
            why.contains("Prepare on a host with ") && why.contains(" GiB or more"),
            "{why}"
        );
    }
}

#[test]
fn a_compiler_that_takes_too_long_is_killed_with_its_children() {
    let mut bench = Bench::new("sleep 600 & echo $! > $here/child; echo at work; wait");
    bench.settings.time_limit = Duration::from_millis(300);
    let why = bench.failure("a");
    assert!(
        why.contains("not done with a after 0 s") && why.contains("at work"),
        "{why}"
    );
    assert_gone(&bench);
    bench.assert_clean();
}

#[test]
fn children_that_outlive_the_compiler_are_killed() {
    let bench = Bench::new("sleep 600 & echo $! > $here/child; good");
    assert_eq!(bench.compile(&["a"]).done.len(), 1);
    assert_gone(&bench);
}

#[test]
fn a_stop_kills_what_runs_and_leaves_nothing() {
    let bench = Bench::new("sleep 600 & echo $! > $here/part; mv $here/part $here/child; wait");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| bench.run(&["a"], &stop).0);
        while !bench.dir.path().join("child").exists() {
            std::thread::sleep(GLANCE);
        }
        stop.store(true, Ordering::Relaxed);
        let error = run.join().unwrap().unwrap_err();
        assert!(matches!(error, CompileError::Stopped), "{error}");
    });
    assert_gone(&bench);
    bench.assert_clean();
}

/// Waits until the process whose number the script left is dead.
#[track_caller]
fn assert_gone(bench: &Bench) {
    let child = bench.read("child").trim().to_owned();
    assert!(!child.is_empty());
    loop {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // In a container nobody may bury it.
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        std::thread::sleep(GLANCE);
    }
}

#[test]
fn a_good_end_without_a_neff_is_an_error() {
    let why = Bench::new("echo fine").failure("a");
    assert!(
        why.contains("wrote no NEFF") && why.contains("fine"),
        "{why}"
    );
    let why = Bench::new("echo short > graph.neff").failure("a");
    assert!(why.contains("has 6 bytes"), "{why}");
}

#[test]
fn no_more_run_at_once_than_their_memory_allows() {
    let script = "ls $here/work | wc -l >> $here/beside; sleep 0.05; good";
    let most = |memory, jobs| {
        let mut bench = Bench::new(script);
        (bench.settings.memory, bench.settings.jobs) = (memory, jobs);
        bench.compile(&["a", "b", "c", "d"]);
        let beside = bench.read("beside");
        beside
            .lines()
            .map(|line| line.trim().parse::<u32>().unwrap())
            .max()
            .unwrap()
    };
    assert_eq!(most(Some(1 << 30), None), 1, "one always runs");
    assert!(most(Some(1 << 30), Some(2)) <= 2, "a number is obeyed");
    assert!(most(None, Some(1)) == 1);
}

#[test]
fn the_peak_is_that_of_all_processes() {
    let bench = Bench::new("sleep 0.4 & sleep 0.4 & wait; good");
    let told = bench.compile(&["a"]);
    assert!(told.done["a"] > 0);
}

#[test]
fn the_version_is_the_first_that_the_compiler_says() {
    let of = |script: &str| {
        let bench = Bench::new(script);
        let stop = AtomicBool::new(false);
        busy(|| version(&bench.settings.program, &bench.work(), &stop))
    };
    let said = "echo 'NeuronX Compiler version 2.27.5334.0+1ab2c3d4\n\nPython version 3.11.9'";
    assert_eq!(of(said).unwrap(), "2.27.5334.0+1ab2c3d4");
    let error = of("echo what").unwrap_err().to_string();
    assert!(error.contains("\"what\""), "{error}");
    let work = tempfile::tempdir().unwrap();
    let none = version(
        OsStr::new("no-such-compiler"),
        work.path(),
        &AtomicBool::new(false),
    );
    let error = none.unwrap_err().to_string();
    assert!(
        error.contains("install") && error.contains("--compiler PATH"),
        "{error}"
    );
}

fn form(weights: WeightFormat) -> Form {
    Form {
        ranks: 1,
        weights,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        fp8_max: 240,
        page_tokens: 32,
        pages: 2,
        context: 32,
        candidates: 8,
    }
}

#[track_caller]
fn check_arguments(target: Target, weights: WeightFormat, extra: &[Extra], ours: &str) {
    let lnc = target.default_logical();
    let all = arguments("decode-4x8", target, lnc, &form(weights), extra).join(" ");
    let fixed = format!(
        "compile graph.hlo --framework XLA --target {target} --output graph.neff --logfile \
         log-neuron-cc.txt "
    );
    assert_eq!(all.strip_prefix(&fixed), Some(ours), "{all}");
}

#[test]
fn arguments_are_those_that_are_known_to_be_good() {
    let plain = "--model-type=transformer --auto-cast=none -O2 --verbose=35";
    let unsafe_fp8 = "--internal-hlo2tensorizer-options=--experimental-unsafe-fp8e4m3fn-as-fp8e4m3";
    check_arguments(Target::Trn1, WeightFormat::Bf16, &[], plain);
    check_arguments(Target::Inf2, WeightFormat::Int8, &[], plain);
    let lnc = format!("{plain} --lnc=2");
    check_arguments(Target::Trn2, WeightFormat::Bf16, &[], &lnc);
    let fp8 = format!("{plain} {unsafe_fp8}");
    check_arguments(Target::Trn1, WeightFormat::Fp8, &[], &fp8);
    check_arguments(Target::Trn3, WeightFormat::Fp8, &[], &lnc);
}

#[test]
fn extra_arguments_take_the_place_of_ours_in_the_modules_they_name() {
    let extra = |modules: &str, arguments: &[&str]| Extra {
        modules: modules.into(),
        arguments: arguments.iter().map(ToString::to_string).collect(),
    };
    let all = [
        extra("decode-", &["-O1", "--enable-saturate-infinity"]),
        extra("prefill-", &["-O3"]),
        extra("", &["--auto-cast=all"]),
    ];
    let ours =
        "--model-type=transformer --verbose=35 -O1 --enable-saturate-infinity --auto-cast=all";
    check_arguments(Target::Trn1, WeightFormat::Bf16, &all, ours);
}
