//! How fast a checkpoint is streamed from a disk, beside plain reads of the same file in large blocks,
//! which is what the disk can do: `cargo bench -p model --bench stream -- [DIRECTORY]`.
//!
//! Without a directory a checkpoint of 2 GiB is made under `target` and left there. Reads go past the
//! system's cache, so nothing need be dropped from it. Rounds alternate, and what is printed are medians
//! with the least and the greatest.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use model::{Decoder, Role, Weights};

const ROUNDS: usize = 5;

/// `O_DIRECT` where this is measured.
const O_DIRECT: i32 = if cfg!(target_arch = "aarch64") {
    0o200_000
} else {
    0o40_000
};

/// Bytes of a plain read.
const BLOCK: usize = 8 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let named = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let directory = match named {
        Some(directory) => directory.into(),
        None => made()?,
    };
    let decoder = Decoder::open(&directory)?;
    let file = directory.join("model.safetensors");
    let bytes = fs::metadata(&file)?.len();
    let (mut plain, mut streamed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(rate(bytes, || plain_read(&file))?);
        let before = memory();
        streamed.push(rate(bytes, || stream(&directory, &decoder))?);
        println!(
            "  peak memory: {} MiB before, {} MiB after",
            before >> 10,
            memory() >> 10
        );
    }
    println!("{} MiB, {ROUNDS} rounds, GB/s:", bytes >> 20);
    println!(
        "  plain blocks of {} MiB: {}",
        BLOCK >> 20,
        told(&mut plain)
    );
    println!("  streamed by tensor:    {}", told(&mut streamed));
    println!(
        "  ratio of medians: {:.2}",
        median(&streamed) / median(&plain)
    );
    Ok(())
}

/// Reads every tensor in the order of the decoder, some rows at a time, and looks at each row.
fn stream(directory: &Path, decoder: &Decoder) -> Result<u64> {
    let weights = Weights::open(directory, decoder)?;
    let order: Vec<Role> = decoder.roles().map(|(role, _)| role).collect();
    let stream = weights.stream(order.iter().copied())?;
    let mut sum = 0;
    for role in order {
        let (dtype, shape) = weights.shape(role);
        let (count, width) = match *shape {
            [rows, columns] => (rows, columns * dtype.size()),
            _ => (1, BLOCK),
        };
        let most = (BLOCK / width).max(1);
        for first in (0..count).step_by(most) {
            let rows = stream.rows(role, first..count.min(first + most))?;
            sum += (0..rows.len())
                .map(|row| u64::from(rows.row(row)[0]))
                .sum::<u64>();
        }
    }
    Ok(sum)
}

/// Reads the file from its first byte to its last.
fn plain_read(path: &Path) -> Result<u64> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(path)?;
    let memory = vec![0_u8; BLOCK + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let (mut memory, mut at, mut sum) = (memory, 0, 0);
    loop {
        let block = &mut memory[start..start + BLOCK];
        let count = file.read_at(block, at)?;
        sum += u64::from(block[0]);
        at += count as u64;
        if count < BLOCK {
            return Ok(sum);
        }
    }
}

/// Bytes a second, in GB.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn rate(bytes: u64, read: impl FnOnce() -> Result<u64>) -> Result<f64> {
    let start = Instant::now();
    std::hint::black_box(read()?);
    Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
}

fn told(rates: &mut [f64]) -> String {
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    format!("{:.2} ({least:.2} to {most:.2})", rates[rates.len() / 2])
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// The most memory that this process has had, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

/// A checkpoint of 2 GiB: a Llama of layers like those of an 8B, and few of them.
fn made() -> Result<PathBuf> {
    const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
        "tie_word_embeddings": true}"#;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stream");
    let path = directory.join("model.safetensors");
    if path.exists() {
        return Ok(directory);
    }
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("config.json"), CONFIG)?;
    let decoder = Decoder::parse(CONFIG.as_bytes())?;
    // As Hugging Face's tools write it: by name.
    let mut tensors: Vec<_> = decoder
        .roles()
        .map(|(role, shape)| (role.name(), shape))
        .collect();
    tensors.sort();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * 2;
        let tensor =
            serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, tensor);
    }
    let header = serde_json::to_vec(&header)?;
    let part = path.with_extension("part");
    let mut file = BufWriter::with_capacity(BLOCK, File::create(&part)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    // Numbers that no disk makes smaller.
    let mut state = 1_u64;
    for _ in 0..end / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.into_inner()?.sync_all()?;
    fs::rename(part, path)?;
    Ok(directory)
}
