//! The command line: every flag that the documents or somebody's working command lines show
//! (neuron.md 2.1), and no other.

use std::path::PathBuf;

use graph::{Compile, Target};

/// Why a command line is refused, in the words of Python's `argparse`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ArgumentError {
    /// Flags or words too many.
    #[error("unrecognized arguments: {0}")]
    Unrecognized(String),
    /// A flag without its value.
    #[error("argument {0}: expected one argument")]
    NoValue(String),
    /// A switch with a value.
    #[error("argument {0}: ignored explicit argument '{1}'")]
    Value(String, String),
    /// A value that is none of those that there are.
    #[error("argument {flag}: invalid choice: '{value}' (choose from {choices})")]
    Choice {
        /// The flag.
        flag: String,
        /// What it was given.
        value: String,
        /// What there is.
        choices: String,
    },
    /// A value that is no number.
    #[error("argument {0}: invalid int value: '{1}'")]
    Number(String, String),
    /// Flags that must be there.
    #[error("the following arguments are required: {0}")]
    Missing(String),
    /// A logical core of more physical ones than the target can join.
    #[error(
        "[NCC_EARG001] Logical NeuronCore configuration {lnc} is not supported on {target}: choose \
         from {choices}"
    )]
    Logical {
        /// Physical cores of a logical one.
        lnc: u32,
        /// What for.
        target: Target,
        /// What there is.
        choices: String,
    },
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    /// `--version`
    Version,
    /// `compile`
    Compile(Arguments),
}

/// What is to be compiled, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Arguments {
    /// The module's file.
    pub(crate) module: PathBuf,
    /// Where the NEFF goes.
    pub(crate) output: PathBuf,
    /// Where the log goes.
    pub(crate) log: PathBuf,
    /// What changes the rules.
    pub(crate) compile: Compile,
    /// Whether the module is verified: `--verify-hlo=false` turns it off.
    pub(crate) verify: bool,
}

/// What may follow a flag.
#[derive(Clone, Copy)]
enum Takes {
    /// Nothing.
    Nothing,
    /// Anything.
    Text,
    /// A number.
    Number,
    /// One of these.
    One(&'static [&'static str]),
    /// All words up to the next flag, of these.
    Several(&'static [&'static str]),
    /// Flags for a part of the compiler, by these names.
    Flags(&'static [&'static str]),
}

use Takes::{Flags, Nothing, Number, One, Several, Text};

const VERBOSITY: Takes = One(&[
    "info", "warning", "error", "critical", "debug", "35", "INFO",
]);

/// All flags by their names.
const FLAGS: &[(&str, Takes)] = &[
    ("--auto-cast", One(&["none", "matmult", "all"])),
    (
        "--auto-cast-type",
        One(&["bf16", "fp16", "tf32", "fp8_e4m3"]),
    ),
    ("--disable-mixed-precision-accumulation", Nothing),
    ("--distribution-strategy", One(&["llm-training"])),
    ("--enable-fast-context-switch", Nothing),
    ("--enable-fast-loading-neuron-binaries", Nothing),
    ("--enable-internal-neff-wrapper", Nothing),
    ("--enable-mixed-precision-accumulation", Nothing),
    ("--enable-output-completion-notifications", Nothing),
    ("--enable-saturate-infinity", Nothing),
    ("--execute-repetition", Number),
    ("--framework", One(&["XLA"])),
    ("--hbm-scratchpad-page-size", Number),
    ("--implicit-integer-downcast", Text),
    ("--internal-backend-options", Flags(BACKEND)),
    ("--internal-bir-enable-sb-allocation", Nothing),
    ("--internal-disable-fma-on-ios", Nothing),
    ("--internal-dma-order-constraints", Nothing),
    ("--internal-enable-dge-levels", Text),
    (
        "--internal-hlo2tensorizer-options",
        Flags(HLO_TO_TENSORIZER),
    ),
    ("--internal-max-instruction-limit", Number),
    ("--internal-tensorizer-opt-level", Number),
    ("--jobs", Number),
    ("--lnc", One(&["1", "2"])),
    ("--logfile", Text),
    ("--logfile-verbose", VERBOSITY),
    (
        "--model-type",
        One(&["generic", "transformer", "unet-inference"]),
    ),
    ("--native-int64", Nothing),
    ("--num-parallel-jobs", Number),
    ("--optlevel", One(&["1", "2", "3"])),
    ("--output", Text),
    ("--pipeline", Several(&["compile", "SaveTemps"])),
    ("--target", Text),
    ("--tensorizer-options", Flags(TENSORIZER)),
    ("--verbose", VERBOSITY),
];

/// Other names of flags.
const ALIASES: &[(&str, &str)] = &[
    ("--logical-nc-config", "--lnc"),
    ("-O", "--optlevel"),
    ("-j", "--jobs"),
    ("-lnc", "--lnc"),
    ("-o", "--output"),
];

const FP8_FLAG: &str = "--experimental-unsafe-fp8e4m3fn-as-fp8e4m3";
const VERIFY: &str = "--verify-hlo";

const HLO_TO_TENSORIZER: &[&str] = &["--modular-flow-mac-threshold", FP8_FLAG, VERIFY];
const BACKEND: &[&str] = &["--enable-verifier", "--enable-nested-dynamic-loop"];
const TENSORIZER: &[&str] = &[
    "--enable-ccop-compute-overlap",
    "--cc-pipeline-tiling-factor",
    "--vectorize-strided-dma",
];

/// What the documents say that the log is called.
const LOG: &str = "log-neuron-cc.txt";

impl Request {
    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    /// See [`ArgumentError`].
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, ArgumentError> {
        let words: Vec<_> = words.collect();
        let Some((verb, rest)) = words.split_first() else {
            return Err(ArgumentError::Missing("command".to_owned()));
        };
        match verb.as_str() {
            "--version" => Ok(Self::Version),
            "compile" => Given::parse(rest)?.arguments().map(Self::Compile),
            _ => Err(ArgumentError::Choice {
                flag: "command".to_owned(),
                value: verb.clone(),
                choices: "'compile', 'list-operators'".to_owned(),
            }),
        }
    }
}

/// What was given: words without a flag, and flags with their values.
#[derive(Default)]
struct Given {
    words: Vec<String>,
    flags: Vec<(&'static str, String)>,
}

impl Given {
    fn parse(words: &[String]) -> Result<Self, ArgumentError> {
        let mut given = Self::default();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            if !word.starts_with('-') {
                given.words.push(word.clone());
                continue;
            }
            let (name, value) = split(word);
            let Some((name, takes)) = known(name) else {
                return Err(ArgumentError::Unrecognized(word.clone()));
            };
            let value = match (takes, value) {
                (Nothing, None) => String::new(),
                (Nothing, Some(value)) => {
                    return Err(ArgumentError::Value(name.to_owned(), value.to_owned()));
                }
                (_, Some(value)) => value.to_owned(),
                (Several(_), None) => {
                    let several = rest
                        .as_slice()
                        .iter()
                        .take_while(|word| !word.starts_with('-'));
                    let several: Vec<_> = several.cloned().collect();
                    rest = rest.as_slice()[several.len()..].iter();
                    several.join(" ")
                }
                (_, None) => match rest.next() {
                    Some(value) if !value.starts_with('-') => value.clone(),
                    _ => return Err(ArgumentError::NoValue(name.to_owned())),
                },
            };
            judge(name, takes, &value)?;
            given.flags.push((name, value));
        }
        Ok(given)
    }

    /// The value of a flag: the last counts.
    fn last(&self, name: &str) -> Option<&str> {
        let mut flags = self.flags.iter().rev();
        flags.find_map(|(is, value)| (*is == name).then_some(value.as_str()))
    }

    /// The value of a flag within `--internal-hlo2tensorizer-options`.
    fn inner(&self, name: &str) -> Option<&str> {
        let options = self.last("--internal-hlo2tensorizer-options")?;
        let mut flags = options.split_whitespace().map(split).rev();
        flags.find_map(|(is, value)| (is == name).then_some(value.unwrap_or("true")))
    }

    fn arguments(&self) -> Result<Arguments, ArgumentError> {
        let module = match &self.words[..] {
            [module] => Some(module),
            [] => None,
            [_, more @ ..] => return Err(ArgumentError::Unrecognized(more.join(" "))),
        };
        let needed = [
            ("model_files", module.is_some()),
            ("--framework", self.last("--framework").is_some()),
            ("--target", self.last("--target").is_some()),
            ("--output", self.last("--output").is_some()),
        ];
        let missing: Vec<_> = needed
            .iter()
            .filter_map(|(name, is_there)| (!is_there).then_some(*name))
            .collect();
        let (Some(module), Some(target), Some(output), true) = (
            module,
            self.last("--target"),
            self.last("--output"),
            missing.is_empty(),
        ) else {
            return Err(ArgumentError::Missing(missing.join(", ")));
        };
        Ok(Arguments {
            module: module.into(),
            output: output.into(),
            log: self.last("--logfile").unwrap_or(LOG).into(),
            compile: self.compile(target)?,
            verify: self.inner(VERIFY) != Some("false"),
        })
    }

    fn compile(&self, target: &str) -> Result<Compile, ArgumentError> {
        let target = self.target(target)?;
        let choices = target.facts().logical;
        let lnc = match self.last("--lnc") {
            Some(lnc) => number("--lnc", lnc)?,
            None => target.default_logical(),
        };
        if !choices.contains(&lnc) {
            return Err(ArgumentError::Logical {
                lnc,
                target,
                choices: listed(choices),
            });
        }
        Ok(Compile {
            target,
            logical: lnc,
            fp8_as_device: self.inner(FP8_FLAG) == Some("true"),
        })
    }

    /// Targets come with the suffix of a revision, too: `trn3-rev2`, `trn3pre`, `trn1n`.
    fn target(&self, name: &str) -> Result<Target, ArgumentError> {
        let base = match name {
            "trn1n" => "trn1",
            "trn3pre" => "trn3",
            _ => name.split_once("-rev").map_or(name, |(base, _)| base),
        };
        base.parse().map_err(|_| ArgumentError::Choice {
            flag: "--target".to_owned(),
            value: name.to_owned(),
            choices: listed(&Target::ALL),
        })
    }
}

/// A flag's name and the value that is part of the same word: `--lnc=2`, `-O1`.
fn split(word: &str) -> (&str, Option<&str>) {
    match word.strip_prefix("-O") {
        Some(level) if !level.is_empty() => ("-O", Some(level)),
        _ => match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        },
    }
}

fn known(name: &str) -> Option<(&'static str, Takes)> {
    let mut aliases = ALIASES.iter();
    let alias = aliases.find_map(|(alias, of)| (*alias == name).then_some(*of));
    let name = alias.unwrap_or(name);
    FLAGS.iter().find(|(flag, _)| *flag == name).copied()
}

/// Refuses a value that the flag does not take.
fn judge(name: &str, takes: Takes, value: &str) -> Result<(), ArgumentError> {
    let among = |choices: &[&str], value: &str| match choices.contains(&value) {
        true => Ok(()),
        false => Err(ArgumentError::Choice {
            flag: name.to_owned(),
            value: value.to_owned(),
            choices: listed(choices),
        }),
    };
    match takes {
        Nothing | Text => Ok(()),
        Number => number(name, value).map(|_: u32| ()),
        One(choices) => among(choices, value),
        Several(choices) => {
            let mut words = value.split_whitespace().peekable();
            if words.peek().is_none() {
                return Err(ArgumentError::NoValue(name.to_owned()));
            }
            words.try_for_each(|word| among(choices, word))
        }
        Flags(choices) => value
            .split_whitespace()
            .try_for_each(|flag| among(choices, split(flag).0)),
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, ArgumentError> {
    let number = value.parse();
    number.map_err(|_| ArgumentError::Number(name.to_owned(), value.to_owned()))
}

fn listed<T: std::fmt::Display>(choices: &[T]) -> String {
    let quoted: Vec<_> = choices.iter().map(|choice| format!("'{choice}'")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "compile graph.hlo --framework XLA --target trn2 --output graph.neff";

    fn parse(line: &str) -> Result<Request, ArgumentError> {
        // A quoted value is one word.
        let mut words = Vec::new();
        for (at, part) in line.split('\'').enumerate() {
            match at % 2 {
                0 => words.extend(part.split_whitespace().map(str::to_owned)),
                _ => match words.pop() {
                    Some(flag) if flag.ends_with('=') => words.push(flag + part),
                    last => words.extend(last.into_iter().chain([part.to_owned()])),
                },
            }
        }
        Request::parse(words.into_iter())
    }

    fn arguments(line: &str) -> Arguments {
        match parse(line) {
            Ok(Request::Compile(arguments)) => arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(more: &str) -> String {
        parse(&format!("{PLAIN} {more}")).unwrap_err().to_string()
    }

    #[test]
    fn what_is_needed_is_enough() {
        let plain = arguments(PLAIN);
        assert_eq!(plain.module, PathBuf::from("graph.hlo"));
        assert_eq!(plain.output, PathBuf::from("graph.neff"));
        assert_eq!(plain.log, PathBuf::from("log-neuron-cc.txt"));
        assert_eq!((plain.compile.logical, plain.verify), (2, true));
        assert!(!plain.compile.fp8_as_device);
    }

    /// Those that are known to work, neuron.md 2.1.
    #[test]
    fn command_lines_of_others_are_taken() {
        for line in [
            "compile graph.hlo --framework XLA --target trn2 --output graph.neff --logfile \
             log-neuron-cc.txt --auto-cast=none --verbose=35 -O1 \
             --internal-hlo2tensorizer-options='--modular-flow-mac-threshold=10 \
             --experimental-unsafe-fp8e4m3fn-as-fp8e4m3' \
             --internal-backend-options='--enable-verifier=false --enable-nested-dynamic-loop'",
            "compile --framework XLA /build/hlo_module.pb --pipeline compile SaveTemps --target trn2 \
             --output=file.neff --lnc 1 --internal-tensorizer-opt-level=2",
            "compile --framework=XLA --target=trn1 X.pb --output=X.neff --model-type=transformer \
             --auto-cast=none --execute-repetition=1 --verbose=INFO --pipeline compile SaveTemps",
            "compile graph.hlo --framework XLA --target trn2 --output graph.neff --auto-cast=none \
             --model-type=transformer --tensorizer-options='--enable-ccop-compute-overlap \
             --cc-pipeline-tiling-factor=2 --vectorize-strided-dma ' --lnc=2 -O1 \
             --internal-hlo2tensorizer-options='--modular-flow-mac-threshold=10 --verify-hlo=true'",
            "compile --framework=XLA --target trn1 --enable-internal-neff-wrapper --output file.neff \
             --optlevel=1 --model-type=transformer --auto-cast=none \
             --enable-fast-loading-neuron-binaries --verbose info --logfile-verbose info \
             --logfile=./log-neuron-cc.txt file.code",
        ] {
            arguments(line);
        }
    }

    #[test]
    fn what_changes_the_rules_is_understood() {
        let fp8 = format!(
            "{PLAIN} --internal-hlo2tensorizer-options=--experimental-unsafe-fp8e4m3fn-as-fp8e4m3"
        );
        assert!(arguments(&fp8).compile.fp8_as_device);
        assert_eq!(arguments(&format!("{PLAIN} -lnc 1")).compile.logical, 1);
        let again = format!("{PLAIN} --logical-nc-config=1 --target trn3-rev2");
        assert_eq!(arguments(&again).compile.target, Target::Trn3);
        let off = format!("{PLAIN} --internal-hlo2tensorizer-options='--verify-hlo=false'");
        assert!(!arguments(&off).verify);
    }

    #[test]
    fn what_it_does_not_know_is_refused_in_its_words() {
        assert!(refused("--fast").contains("unrecognized arguments: --fast"));
        assert!(refused("more.hlo").contains("unrecognized arguments: more.hlo"));
        assert!(refused("--target trn9").contains("invalid choice: 'trn9' (choose from 'inf2'"));
        assert!(refused("-O4").contains("invalid choice: '4'"));
        assert!(refused("--logfile").contains("expected one argument"));
        assert!(refused("--native-int64=1").contains("ignored explicit argument '1'"));
        assert!(refused("--jobs many").contains("invalid int value: 'many'"));
        let inner = "--internal-hlo2tensorizer-options --verify-hlo";
        assert!(refused(inner).contains("expected one argument"));
        let inner = "--internal-hlo2tensorizer-options='--frobnicate'";
        assert!(refused(inner).contains("invalid choice: '--frobnicate'"));
        let missing = parse("compile --target trn2").unwrap_err().to_string();
        assert!(
            missing.contains("model_files, --framework, --output"),
            "{missing}"
        );
        assert!(parse("").is_err() && parse("decompile").is_err());
    }

    #[test]
    fn cores_are_joined_only_where_they_can_be() {
        let error = refused("--target inf2 --lnc 2");
        assert!(error.contains("NCC_EARG001"), "{error}");
        assert_eq!(
            arguments(&format!("{PLAIN} --target inf2")).compile.logical,
            1
        );
    }
}
