//! What is checked on the device, each in a process of its own: one that hangs or dies takes nothing
//! else with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use graph::narrow;
use half::bf16;
use serde_json::json;

use super::bench::{
    self, Loaded, Plan, Seen, bytes, demand, exact, executed, group, int_bytes, ints, millis, port,
    start, summed, told,
};
use super::samples::{
    self, COLUMNS, ENTRIES, GATHERED, LOGITS, LOOKED_AT, PAGE_TOKENS, PAGES, ROWS, SUMMED, WANTED,
    WIDTH, WRITTEN, largest_name,
};
use crate::fault::Advice;
use crate::klog::{self, Log};
use crate::nrt::{Model, Runtime, Status, Tensor, Usage};
use crate::sysfs::{self, Tree};

/// Looks, notes what it sees, and says what is wrong.
type Check = fn(&Plan, &mut Seen) -> Result<(), String>;

/// All checks by name.
const CHECKS: [(&str, Check); 15] = [
    ("runtime", runtime),
    ("names", names),
    ("arithmetic", arithmetic),
    ("in-place", in_place),
    ("pages", pages),
    ("largest", largest),
    ("pair", pair),
    ("everybody", everybody),
    ("two-pairs", two_pairs),
    ("fp8", fp8),
    ("memory", memory),
    ("hold", hold),
    ("refusals", refusals),
    ("soak", soak),
    ("threads", threads),
];

/// The check of this name.
pub(super) fn named(name: &str) -> Option<Check> {
    let check = CHECKS.iter().find(|(known, _)| *known == name);
    check.map(|(_, check)| *check)
}

/// The runtime starts, and its cores compute.
fn runtime(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let begun = Instant::now();
    let runtime = start(plan)?;
    seen.note("start_ms", millis(begun.elapsed()));
    let expected = plan.target.facts().memory(plan.lnc);
    seen.note("expected_memory_of_core", expected);
    let mut limits = Vec::new();
    for core in 0..plan.count() {
        if let Some(memory) = runtime.memory(core).map_err(told)? {
            limits.push(memory.limit);
        }
    }
    if let (Some(least), Some(most)) = (limits.iter().min(), limits.iter().max()) {
        seen.note("memory_of_core", json!([least, most]));
        demand(*least >= expected / 100 * 90, || {
            format!(
                "a core has {least} bytes of memory where {expected} were expected: plans made for \
                 this target will not fit"
            )
        })?;
    }
    Ok(())
}

/// Each NEFF lists what its module takes and gives, under names that are understood.
fn names(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let mut wrong = Vec::new();
    for name in plan.neffs.keys() {
        let sample = plan.sample(name)?;
        if sample.ranks > 1 {
            continue;
        }
        let begun = Instant::now();
        let model = Model::load(&runtime, &plan.neff(name)?, 0).map_err(told)?;
        let load_ms = millis(begun.elapsed());
        let mut listed = Vec::new();
        for info in model.tensors() {
            listed.push(json!({
                "name": info.name, "input": info.usage == Usage::Input, "bytes": info.size,
                "shape": info.shape, "dtype": info.dtype,
            }));
            match port(&sample, info) {
                Some(port) if port.bytes() == info.size => {}
                Some(port) => wrong.push(format!(
                    "{name}: {} has {} bytes, not {}",
                    info.name,
                    info.size,
                    port.bytes()
                )),
                None => wrong.push(format!("{name}: nobody knows {}", info.name)),
            }
        }
        let count = sample.inputs.len() + sample.outputs.len();
        if model.tensors().len() < count {
            let listed = model.tensors().len();
            wrong.push(format!("{name}: {listed} of {count} tensors are listed"));
        }
        seen.note(name, json!({"load_ms": load_ms, "tensors": listed}));
    }
    demand(wrong.is_empty(), || wrong.join("; "))
}

/// Numbers that look random and are the same each time: whole ones from `-most` to `most`.
#[expect(clippy::cast_precision_loss, reason = "numbers below 2^24")]
fn whole(count: u32, most: u32, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let numbers = (0..count).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % (2 * most + 1)
    });
    numbers.map(|number| number as f32 - most as f32).collect()
}

fn narrow_bytes(numbers: &[f32]) -> Vec<u8> {
    let narrow = numbers.iter().map(|number| bf16::from_f32(*number));
    narrow.flat_map(bf16::to_le_bytes).collect()
}

/// `x w` in F64, `x` being [rows, summed] and `w` [summed, columns].
fn product(x: &[f32], w: &[f32]) -> Vec<f64> {
    let (summed, columns) = (SUMMED as usize, COLUMNS as usize);
    let mut product = vec![0.0; ROWS as usize * columns];
    for (row, x) in product.chunks_mut(columns).zip(x.chunks(summed)) {
        for (x, w) in x.iter().zip(w.chunks(columns)) {
            for (sum, w) in row.iter_mut().zip(w) {
                *sum += f64::from(*x) * f64::from(*w);
            }
        }
    }
    product
}

#[expect(clippy::cast_possible_truncation, reason = "sums below 2^24 are exact")]
fn rounded(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|number| *number as f32).collect()
}

/// Sums and products are right: of whole numbers exactly, of fractions within the error of F32.
fn arithmetic(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let add = Loaded::alone(&runtime, plan, "add", 0)?;
    let (x, y) = (
        whole(ROWS * COLUMNS, 1000, 1),
        whole(ROWS * COLUMNS, 1000, 2),
    );
    add.write("x", &bytes(&x))?;
    add.write("y", &bytes(&y))?;
    add.execute()?;
    let sums: Vec<_> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    exact("total", &add.numbers("total")?, &sums)?;
    let matrices = Loaded::alone(&runtime, plan, "product", 0)?;
    let run = |x: &[f32], w: &[f32]| -> Result<Vec<f32>, String> {
        matrices.write("x", &narrow_bytes(x))?;
        matrices.write("w", &narrow_bytes(w))?;
        matrices.execute()?;
        matrices.numbers("product")
    };
    let (x, w) = (whole(ROWS * SUMMED, 7, 3), whole(SUMMED * COLUMNS, 7, 4));
    exact("product", &run(&x, &w)?, &rounded(&product(&x, &w)))?;
    // Up to 1, as BF16 has them; their sums need more than F32 has.
    let fractions = |numbers: Vec<f32>| {
        let fractions = numbers
            .iter()
            .map(|one| bf16::from_f32(one / 1000.0).to_f32());
        fractions.collect::<Vec<_>>()
    };
    let (x, w) = (
        fractions(whole(ROWS * SUMMED, 1000, 5)),
        fractions(whole(SUMMED * COLUMNS, 1000, 6)),
    );
    let found = run(&x, &w)?;
    let expected = product(&x, &w);
    let error = found.iter().zip(&expected);
    let error = error.map(|(found, expected)| (f64::from(*found) - expected).abs());
    let worst = error.fold(0.0, f64::max);
    seen.note("worst_error_of_product", worst);
    // 256 products below 1, each rounded to 24 bits at a sum below 64 or so; ten times that.
    demand(worst < 1e-3, || {
        format!("products of fractions are wrong by {worst}: sums are not in F32")
    })?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        add.execute()?;
        times.push(begun.elapsed());
    }
    note_times(seen, "execute_ms", &mut times);
    Ok(())
}

/// The least, the median and the most of some times.
fn note_times(seen: &mut Seen, name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    if let [least, .., most] = times {
        let [least, most] = [*least, *most].map(millis);
        let median = millis(times[times.len() / 2]);
        seen.note(
            name,
            json!({"least": least, "median": median, "most": most}),
        );
    }
}

/// A row that is written in place, by executions one after the other, and what the others hold.
struct Rows {
    loaded: Loaded,
    /// What the state should be.
    state: Vec<f32>,
}

impl Rows {
    fn new(runtime: &Runtime, plan: &Plan) -> Result<Self, String> {
        let loaded = Loaded::alone(runtime, plan, "in-place", 0)?;
        let state = whole(ROWS * COLUMNS, 1000, 7);
        loaded.write("state", &bytes(&state))?;
        Ok(Self { loaded, state })
    }

    /// Writes row `at`, and finds it and others as they were written before.
    fn write(&mut self, at: u32, seed: u32) -> Result<(), String> {
        let row = whole(COLUMNS, 1000, seed);
        let table: Vec<_> = (0..LOOKED_AT)
            .map(|back| (at + ROWS - back) % ROWS)
            .collect();
        self.loaded.write("at", &int_bytes(&signed(&[at])?))?;
        self.loaded.write("table", &int_bytes(&signed(&table)?))?;
        self.loaded.write("row", &bytes(&row))?;
        self.loaded.execute()?;
        let columns = COLUMNS as usize;
        self.state[at as usize * columns..][..columns].copy_from_slice(&row);
        let found = table
            .iter()
            .flat_map(|row| &self.state[*row as usize * columns..][..columns]);
        let found: Vec<_> = found.copied().collect();
        exact("found", &self.loaded.numbers("found")?, &found)
    }

    /// The whole state is what it should be.
    fn check(&self) -> Result<(), String> {
        exact("state", &self.loaded.numbers("state")?, &self.state)
    }
}

/// What an execution leaves in a tensor that is both input and output, the next one finds there.
fn in_place(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let mut rows = Rows::new(&runtime, plan)?;
    for round in 0..6 {
        rows.write(5 + round, round)?;
    }
    rows.check()?;
    // What the host writes in between is found as well.
    rows.state = whole(ROWS * COLUMNS, 1000, 99);
    rows.loaded.write("state", &bytes(&rows.state))?;
    rows.write(0, 98)?;
    rows.check()?;
    seen.note("executions", 7);
    Ok(())
}

/// Rows are scattered to where they belong and nowhere else, padding goes to page 0, and whole pages
/// are gathered as they are after that.
fn pages(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let loaded = Loaded::alone(&runtime, plan, "pages", 0)?;
    let mut cache = whole(PAGES * PAGE_TOKENS * WIDTH, 1000, 8);
    loaded.write("cache", &bytes(&cache))?;
    let width = WIDTH as usize;
    let mut times = Vec::new();
    for round in 0..4_u32 {
        // Five tokens at the end of a page and on into another, and three of padding, which go to
        // positions 1, 2, 3 of page 0, in turn.
        let (first, second) = (PAGE_TOKENS * (3 + round) - 2, PAGE_TOKENS * (20 + round));
        let slots = [first, first + 1, second, second + 1, second + 2, 1, 2, 3];
        let table = [3 + round - 1, 20 + round, 0, 31];
        let rows = whole(WRITTEN * WIDTH, 1000, 9 + round);
        loaded.write("slots", &int_bytes(&signed(&slots)?))?;
        loaded.write("table", &int_bytes(&signed(&table)?))?;
        loaded.write("rows", &bytes(&rows))?;
        let begun = Instant::now();
        loaded.execute()?;
        times.push(begun.elapsed());
        for (slot, row) in slots.iter().zip(rows.chunks(width)) {
            let at = *slot as usize * width;
            cache[at..at + width].copy_from_slice(row);
        }
        let page = PAGE_TOKENS as usize * width;
        let gathered = table.iter().flat_map(|number| {
            let at = *number as usize * page;
            cache[at..at + page].to_vec()
        });
        let gathered: Vec<_> = gathered.collect();
        debug_assert_eq!(gathered.len(), GATHERED as usize * page);
        exact("gathered", &loaded.numbers("gathered")?, &gathered)?;
        exact("cache", &loaded.numbers("cache")?, &cache)?;
    }
    note_times(seen, "execute_ms", &mut times);
    seen.note("neff_to_profile", path_of(plan, "pages"));
    Ok(())
}

fn signed(numbers: &[u32]) -> Result<Vec<i32>, String> {
    let signed = numbers.iter().map(|number| i32::try_from(*number));
    signed.collect::<Result<_, _>>().map_err(told)
}

fn path_of(plan: &Plan, name: &str) -> String {
    let path = plan.neffs.get(name);
    path.map_or_else(String::new, |path| path.display().to_string())
}

/// The greatest of a row come in order, with their columns, and of equals the lowest column first.
fn largest(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    // Few enough values that most are there several times.
    let logits = whole(ENTRIES * LOGITS, 2000, 10);
    let mut ties = true;
    for wanted in [WANTED, 1] {
        let loaded = Loaded::alone(&runtime, plan, &largest_name(wanted), 0)?;
        loaded.write("logits", &bytes(&logits))?;
        loaded.execute()?;
        let (values, columns) = (loaded.numbers("values")?, ints(&loaded.read("columns")?));
        let mut expected = Vec::new();
        for (row, found) in (logits.chunks(LOGITS as usize)).zip(columns.chunks(wanted as usize)) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|one, other| row[*other].total_cmp(&row[*one]).then(one.cmp(other)));
            order.truncate(wanted as usize);
            expected.extend(order.iter().map(|column| row[*column]));
            let place = |column: &i32| usize::try_from(*column).ok();
            let of_value = found.iter().map(|column| row.get(place(column)?).copied());
            let of_value: Option<Vec<_>> = of_value.collect();
            let right: Vec<_> = order.iter().map(|column| row[*column]).collect();
            demand(of_value.as_ref() == Some(&right), || {
                format!("the {wanted} columns are not those of the values: {found:?}")
            })?;
            ties &= found
                .iter()
                .map(place)
                .eq(order.iter().map(|column| Some(*column)));
        }
        exact("values", &values, &expected)?;
        seen.note(
            format!("shapes_of_{wanted}"),
            json!([values.len(), columns.len()]),
        );
    }
    seen.note("equals_by_lowest_column", ties);
    demand(ties, || {
        "of equal numbers not the lowest column comes first: greedy answers may differ from those of \
         the CPU backend where two tokens are equally likely"
            .to_owned()
    })
}

/// A group of ranks, threads of this process, that sums some times.
fn sums(plan: &Plan, seen: &mut Seen, ranks: u32) -> Result<(), String> {
    let runtime = start(plan)?;
    let begun = Instant::now();
    let mut group = group(&runtime, plan, ranks, 0)?;
    seen.note("load_ms", millis(begun.elapsed()));
    for round in 0..3 {
        summed(&mut group, plan, round)?;
    }
    let mut times = Vec::new();
    for _ in 0..100 {
        times.push(executed(&mut group, plan)?);
    }
    note_times(seen, "sum_ms", &mut times);
    Ok(())
}

fn pair(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    sums(plan, seen, 2)
}

fn everybody(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    sums(plan, seen, plan.count())
}

/// Two groups of ranks in one process, as two replicas of a model are.
fn two_pairs(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let mut first = group(&runtime, plan, 2, 0)?;
    let mut second = group(&runtime, plan, 2, 2)?;
    for round in 0..3 {
        summed(&mut first, plan, round)?;
        summed(&mut second, plan, round + 1)?;
    }
    seen.note("sums", 6);
    Ok(())
}

/// FP8 weights are widened to what their codes mean, and multiplied.
fn fp8(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let loaded = Loaded::alone(&runtime, plan, "fp8", 0)?;
    let most = plan.target.facts().fp8_max;
    // What the device's E4M3 has: on some the uppermost codes are infinities.
    #[expect(clippy::cast_precision_loss, reason = "240 or 448")]
    let is_number = |code: &u8| narrow::from_e4m3(*code).abs() <= most as f32;
    let codes: Vec<u8> = (0..=u8::MAX).filter(is_number).collect();
    let count = SUMMED as usize * COLUMNS as usize;
    let w: Vec<u8> = codes.iter().copied().cycle().take(count).collect();
    // One weight for each number of the product.
    let mut x = vec![0.0; (ROWS * SUMMED) as usize];
    for (row, x) in x.chunks_mut(SUMMED as usize).enumerate() {
        x[SUMMED as usize - 1 - row] = 1.0;
    }
    loaded.write("x", &narrow_bytes(&x))?;
    loaded.write("w", &w)?;
    loaded.execute()?;
    let widened: Vec<_> = w.iter().map(|code| narrow::from_e4m3(*code)).collect();
    seen.note("codes", codes.len());
    seen.note("largest", most);
    exact("widened", &loaded.numbers("widened")?, &widened)?;
    let rows = widened.chunks(COLUMNS as usize).rev().take(ROWS as usize);
    let product: Vec<_> = rows.flatten().copied().collect();
    exact("product", &loaded.numbers("product")?, &product)
}

/// Bytes used of a core's memory.
fn used(runtime: &Runtime, core: u32) -> Result<u64, String> {
    let memory = runtime.memory(core).map_err(told)?;
    let memory = memory.ok_or("this runtime does not tell how much memory is used")?;
    Ok(memory.used)
}

/// Memory is taken as it is expected to be: of the samples, and of bundles of models.
fn memory(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let before = used(&runtime, 0)?;
    seen.note("after_start", before);
    seen.note(
        "after_start_expected",
        graph::Parts::loading(1, &[]).runtime,
    );
    let size = 256 << 20;
    let tensor = Tensor::allocate(&runtime, 0, size, "doctor").map_err(told)?;
    let taken = used(&runtime, 0)?.saturating_sub(before);
    seen.note("tensor_bytes", size as u64);
    seen.note("tensor_taken", taken);
    drop(tensor);
    let left = used(&runtime, 0)?.saturating_sub(before);
    seen.note("left_after_free", left);
    note_kinds(seen, "kinds");
    demand(taken <= size as u64 + (8 << 20), || {
        format!("a tensor of {size} bytes takes {taken}")
    })?;
    seen.note("bundles", plan.bundles.len());
    let mut small = Vec::new();
    for path in &plan.bundles {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match super::bundles::measure(&runtime, plan, path) {
            Ok(measured) => {
                if measured.is_more_than_expected() {
                    small.push(format!("{name}: {measured}"));
                }
                seen.note(format!("bundle {name}"), measured.json());
            }
            Err(why) => small.push(format!("{name}: {why}")),
        }
    }
    demand(small.is_empty(), || small.join("; "))
}

/// What the driver says memory is used for.
fn note_kinds(seen: &mut Seen, name: &str) {
    let Ok(mut tree) = Tree::open(&sysfs::root()) else {
        return;
    };
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    let snapshot = tree.read();
    let cores = snapshot.chips.values().flat_map(|chip| chip.cores.values());
    for (kind, usage) in cores.flat_map(|core| &core.memory) {
        *kinds.entry(kind.clone()).or_default() += usage.present;
    }
    seen.note(name, json!(kinds));
}

/// Executes until it is killed. That it does it says by a file.
fn hold(plan: &Plan, _seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let loaded = Loaded::alone(&runtime, plan, "product", 0)?;
    loaded.tensor("x")?.zero().map_err(told)?;
    loaded.tensor("w")?.zero().map_err(told)?;
    loaded.execute()?;
    let path = std::env::var_os(super::HOLDING).map(PathBuf::from);
    let path = path.ok_or("nobody said where to tell that it runs")?;
    fs::write(path, "executing").map_err(told)?;
    let begun = Instant::now();
    while begun.elapsed() < plan.patience {
        loaded.execute()?;
    }
    Err("nobody killed it".to_owned())
}

/// What cannot be loaded is refused, a full memory is told, and both leave the device as it was.
fn refusals(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let add = plan.neff("add")?;
    let mut wrong = vec![
        ("garbage", vec![0x5a; 64 << 10]),
        ("half a NEFF", add[..add.len() / 2].to_vec()),
    ];
    if let Some(path) = &plan.foreign {
        wrong.push(("a NEFF for another target", bench::read(path)?));
    }
    let mut taken = Vec::new();
    for (what, neff) in wrong {
        match Model::load(&runtime, &neff, 0) {
            Ok(_) => taken.push(what),
            Err(error) => seen.note(what, error.status.to_string()),
        }
    }
    fill(&runtime, seen)?;
    let loaded = Loaded::alone(&runtime, plan, "add", 0)?;
    let ones = vec![1.0; (ROWS * COLUMNS) as usize];
    loaded.write("x", &bytes(&ones))?;
    loaded.write("y", &bytes(&ones))?;
    loaded.execute()?;
    let twos = vec![2.0; ones.len()];
    exact("total", &loaded.numbers("total")?, &twos)?;
    demand(taken.is_empty(), || {
        format!("{} was loaded without a word", taken.join(" and "))
    })
}

/// Takes all memory of a core, and gives it back.
fn fill(runtime: &Runtime, seen: &mut Seen) -> Result<(), String> {
    let limit = runtime.memory(0).map_err(told)?.map(|memory| memory.limit);
    let piece = usize::try_from(limit.unwrap_or(16 << 30) / 16).map_err(told)?;
    let mut tensors = Vec::new();
    let full = loop {
        match Tensor::allocate(runtime, 0, piece, "doctor-fill") {
            // 64 pieces are four times what there is.
            Ok(_) if tensors.len() >= 64 => break None,
            Ok(tensor) => tensors.push(tensor),
            Err(error) => break Some(error),
        }
    };
    seen.note("memory_taken", tensors.len() as u64 * piece as u64);
    let Some(error) = full else {
        return Err("four times the memory of a core was given without a word".to_owned());
    };
    seen.note("full_memory", error.status.to_string());
    demand(error.status == Status::RESOURCE, || {
        format!("a full memory is told as {}", error.status)
    })
}

/// Computes for a while and checks every sum; nothing may be counted meanwhile that is an error.
fn soak(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    let runtime = start(plan)?;
    let mut counters = Counters::now();
    let ranks = plan.count();
    let mut group = match plan.neffs.contains_key(&samples::sum_name(ranks)) {
        true => Some(group(&runtime, plan, ranks, 0)?),
        false => None,
    };
    let mut rows = Rows::new(&runtime, plan)?;
    let before = runtime.memory(0).map_err(told)?.map(|memory| memory.used);
    let begun = Instant::now();
    let (mut rounds, mut slowest) = (0_u32, Duration::ZERO);
    while begun.elapsed() < plan.soak || rounds == 0 {
        let told = |why| format!("round {rounds}: {why}");
        rows.write(rounds % ROWS, rounds).map_err(told)?;
        if let Some(group) = &mut group {
            slowest = slowest.max(summed(group, plan, rounds as usize % 17).map_err(told)?);
        }
        rounds = rounds.wrapping_add(1);
    }
    rows.check()?;
    seen.note("seconds", begun.elapsed().as_secs());
    seen.note("rounds", rounds);
    seen.note("slowest_sum_ms", millis(slowest));
    let after = runtime.memory(0).map_err(told)?.map(|memory| memory.used);
    if let (Some(before), Some(after)) = (before, after) {
        seen.note("memory_growth", after.saturating_sub(before));
    }
    counters.compare(seen)
}

/// What the driver and the kernel counted at one moment.
struct Counters {
    tree: Option<Tree>,
    before: BTreeMap<String, u64>,
    log: Option<Log>,
}

impl Counters {
    fn now() -> Self {
        let mut tree = Tree::open(&sysfs::root()).ok();
        Self {
            before: tree.as_mut().map(errors).unwrap_or_default(),
            tree,
            log: Log::from_now(&klog::path()).ok(),
        }
    }

    /// What was counted since then; an error if any of it is one.
    fn compare(&mut self, seen: &mut Seen) -> Result<(), String> {
        let mut wrong = Vec::new();
        match &mut self.tree {
            Some(tree) => {
                let now = errors(tree);
                let grown = now.iter().filter_map(|(name, count)| {
                    let before = self.before.get(name).copied().unwrap_or(0);
                    (*count > before).then(|| format!("{name} by {}", count - before))
                });
                wrong.extend(grown);
                seen.note("counters", now.len());
            }
            None => seen.note("counters", "the driver's tree in sysfs cannot be read"),
        }
        match &mut self.log {
            Some(log) => wrong.extend(log.errors().into_iter().map(|error| error.error)),
            None => seen.note("kernel_log", "it may not be read: run as root to watch it"),
        }
        demand(wrong.is_empty(), || {
            format!("counted: {}", wrong.join(", "))
        })
    }
}

/// Counters of errors, all of the instance.
fn errors(tree: &mut Tree) -> BTreeMap<String, u64> {
    let mut errors = BTreeMap::new();
    for (number, chip) in tree.read().chips {
        for (name, count) in chip.hardware {
            if !name.ends_with("ecc_corrected") {
                errors.insert(format!("{name} of device {number}"), count);
            }
        }
        for (core, counted) in chip.cores {
            for (status, count) in counted.statuses {
                if status != "success" {
                    errors.insert(format!("{status} of core {core} of device {number}"), count);
                }
            }
        }
    }
    errors
}

/// How many threads the runtime has, what they take while nothing is computed, and where ranks run.
fn threads(plan: &Plan, seen: &mut Seen) -> Result<(), String> {
    const IDLE: Duration = Duration::from_secs(1);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    seen.note("processors", processors);
    seen.note("numa_nodes", numa_nodes());
    seen.note("threads_before", count_threads());
    let runtime = start(plan)?;
    seen.note("threads_started", count_threads());
    let ranks = plan.count();
    let mut group = match plan.neffs.contains_key(&samples::sum_name(ranks)) {
        true => Some(group(&runtime, plan, ranks, 0)?),
        false => None,
    };
    seen.note("threads_loaded", count_threads());
    seen.note("threads_by_name", json!(threads_by_name()));
    if let Some(group) = &mut group {
        let places = group.each(|_, _| allowed());
        let places: Vec<_> = places.into_iter().flatten().collect();
        seen.note("processors_of_ranks", json!(places));
    }
    let before = processor_time()?;
    thread::sleep(IDLE);
    let busy = (processor_time()? - before) / IDLE.as_secs_f64();
    seen.note("processors_busy_when_idle", (busy * 100.0).round() / 100.0);
    let most = 0.75 * f64::from(u32::try_from(processors).unwrap_or(u32::MAX));
    demand(busy <= most, || {
        format!(
            "the runtime keeps {busy:.1} of {processors} processors busy while nothing is computed: \
             little is left for HTTP and text"
        )
    })
}

/// On how many processors this thread may run.
fn allowed() -> usize {
    use nix::sched::{CpuSet, sched_getaffinity};

    let set = sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = |set: CpuSet| {
        let processors = 0..CpuSet::count();
        processors
            .filter(|one| set.is_set(*one).unwrap_or(false))
            .count()
    };
    set.map_or(0, count)
}

fn count_threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn threads_by_name() -> BTreeMap<String, u32> {
    let mut names: BTreeMap<String, u32> = BTreeMap::new();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    for task in tasks.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        // Numbers tell threads of a kind apart.
        let kind = name
            .trim()
            .trim_end_matches(|letter: char| letter.is_ascii_digit());
        *names.entry(kind.to_owned()).or_default() += 1;
    }
    names
}

fn numa_nodes() -> usize {
    let entries = fs::read_dir("/sys/devices/system/node")
        .into_iter()
        .flatten();
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let is_node = |name: &String| {
        let number = name.strip_prefix("node").unwrap_or_default();
        number.parse::<u32>().is_ok()
    };
    names.filter(is_node).count()
}

/// Seconds that this process has computed.
fn processor_time() -> Result<f64, String> {
    use nix::sys::resource::{UsageWho, getrusage};

    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(told)?;
    let times = [usage.user_time(), usage.system_time()];
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of a short process"
    )]
    let seconds = times.map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6);
    Ok(seconds.iter().sum())
}

/// What the kernel's log still has of failures of the hardware, and the gravest advice of it.
pub(super) fn kernel_errors(path: &Path) -> (Vec<String>, Advice) {
    let Ok(mut log) = Log::from_start(path) else {
        return (Vec::new(), Advice::Nothing);
    };
    let errors = log.errors();
    let advice = errors.iter().map(klog::HardwareError::advice).max();
    let told = errors.into_iter().map(|error| error.error).collect();
    (told, advice.unwrap_or(Advice::Nothing))
}

/// A sample is known by the name that checks use.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_random_and_stay_in_their_range() {
        let numbers = whole(10_000, 7, 3);
        assert_eq!(numbers, whole(10_000, 7, 3));
        assert!(numbers.iter().all(|number| number.abs() <= 7.0));
        for number in -7_i8..=7 {
            assert!(numbers.contains(&f32::from(number)), "{number}");
        }
    }

    #[test]
    fn checks_ask_for_samples_that_there_are() {
        let samples = samples::all(4).unwrap();
        let names: Vec<_> = samples.iter().map(|sample| sample.name.as_str()).collect();
        let wide = [largest_name(WANTED), largest_name(1), samples::sum_name(4)];
        let plain = ["add", "product", "in-place", "pages", "fp8"];
        for name in plain.into_iter().chain(wide.iter().map(String::as_str)) {
            assert!(names.contains(&name), "{name}");
        }
    }
}
