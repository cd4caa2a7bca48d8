use super::*;

const GIB: u64 = 1 << 30;

/// Llama-3-8B's sizes.
fn llama(layers: u32) -> Decoder {
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": {layers},
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000, "tie_word_embeddings": false,
        "vocab_size": 128256}}"#
    );
    Decoder::parse(config.as_bytes()).unwrap()
}

fn wish(target: Target, ranks: u32) -> Wish {
    Wish {
        target,
        lnc: None,
        ranks,
        weights: WeightFormat::Bf16,
        activations: Activations::Bf16,
        kv: KvFormat::Bf16,
        demand: Demand {
            context: 8192,
            rows: 64,
            step_tokens: 512,
            kv_tokens: None,
            cores: None,
        },
        candidates: None,
        page_tokens: None,
        kv_pages: None,
        decode_rows: None,
        prefill_tokens: None,
        context_pages: None,
        embeddings: false,
    }
}

fn plan(wish: &Wish) -> Result<Plan, PlanError> {
    Plan::new(&llama(32), wish)
}

fn names(plan: &Plan) -> Vec<String> {
    plan.buckets.iter().map(|bucket| bucket.name()).collect()
}

#[test]
fn sizes_go_by_fours_up_to_what_is_wanted() {
    let plan = plan(&wish(Target::Trn2, 4)).unwrap();
    assert_eq!(
        (plan.lnc, plan.form.page_tokens, plan.form.fp8_max),
        (2, 32, 240)
    );
    let expected = "decode-1x16 decode-1x64 decode-1x256 decode-4x16 decode-4x64 decode-4x256 \
        decode-16x16 decode-16x64 decode-16x256 decode-64x16 decode-64x64 decode-64x256 \
        prefill-1x128x0 prefill-1x128x16 prefill-1x128x256 prefill-1x512x0 prefill-1x512x16 \
        prefill-1x512x256 prefill-1x64x256-each copy-8";
    assert_eq!(names(&plan).join(" "), expected);
}

#[test]
fn a_demand_between_sizes_gets_its_own() {
    let mut wish = wish(Target::Trn2, 4);
    wish.demand.rows = 20;
    wish.demand.context = 1000;
    wish.demand.step_tokens = 300;
    wish.embeddings = true;
    let expected = "decode-1x8 decode-1x32 decode-4x8 decode-4x32 decode-16x8 decode-16x32 \
        decode-20x8 decode-20x32 prefill-1x128x0 prefill-1x128x32 prefill-1x300x0 \
        prefill-1x300x32 prefill-1x64x32-each prefill-1x128x32-embedding copy-8";
    assert_eq!(names(&plan(&wish).unwrap()).join(" "), expected);
}

#[test]
fn what_is_said_is_taken() {
    let mut wish = wish(Target::Trn1, 8);
    wish.decode_rows = Some(vec![2, 8]);
    wish.prefill_tokens = Some(vec![256]);
    wish.context_pages = Some(vec![32, 128]);
    wish.page_tokens = Some(64);
    wish.kv_pages = Some(200);
    wish.candidates = Some(20);
    let plan = plan(&wish).unwrap();
    let expected = "decode-2x32 decode-2x128 decode-8x32 decode-8x128 prefill-1x256x0 \
        prefill-1x256x32 prefill-1x256x128 prefill-1x64x128-each copy-8";
    assert_eq!(names(&plan).join(" "), expected);
    let Form {
        pages, candidates, ..
    } = plan.form;
    assert_eq!((pages, candidates), (201, 20), "the null page is one more");
}

#[test]
fn a_page_has_enough_bytes_to_be_moved_at_once() {
    let tokens = |ranks, kv| {
        let wish = Wish {
            kv,
            ..wish(Target::Trn2, ranks)
        };
        plan(&wish).unwrap().form.page_tokens
    };
    // One head of 128 dimensions a rank.
    assert_eq!(tokens(8, KvFormat::Bf16), 32);
    assert_eq!(tokens(8, KvFormat::Fp8), 32);
    let mut small = llama(2);
    small.attention.head_size = 16;
    let plan = Plan::new(&small, &wish(Target::Trn2, 8)).unwrap();
    assert_eq!(plan.form.page_tokens, 128);
}

#[test]
fn kv_takes_what_all_rows_fill_or_what_is_left() {
    let pages = |target, ranks| plan(&wish(target, ranks)).unwrap().form.pages;
    // 64 rows of 8192 positions; a rank of 4 has 2 heads of 128, in 32 layers: 32 KiB a position.
    assert_eq!(pages(Target::Trn3, 4), 64 * 256 + 1);
    let some = pages(Target::Trn2, 2);
    assert!((257..64 * 256).contains(&some), "{some}");
    // 20.4 GiB of tensors, 7.5 of them weights, at 2 MiB a page and rank.
    let left = u64::from(some) * (2 << 20);
    assert!((10 * GIB..13 * GIB).contains(&left), "{left}");
    let mut wish = wish(Target::Trn2, 2);
    wish.demand.kv_tokens = Some(32_000);
    assert_eq!(plan(&wish).unwrap().form.pages, 1001);
}

#[track_caller]
fn check_refused(change: impl FnOnce(&mut Wish), told: &[&str]) {
    let mut wish = wish(Target::Trn1, 8);
    change(&mut wish);
    let error = plan(&wish).unwrap_err().to_string();
    for word in told {
        assert!(error.contains(word), "{word:?} in {error}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_what_could_is_said() {
    check_refused(
        |wish| wish.lnc = Some(2),
        &["--lnc 2: trn1 has logical cores of 1"],
    );
    check_refused(|wish| wish.ranks = 3, &["3 ranks", "1, 2, 4, 8"]);
    check_refused(|wish| wish.page_tokens = Some(24), &["power of two"]);
    check_refused(|wish| wish.page_tokens = Some(0), &["power of two"]);
    check_refused(
        |wish| wish.decode_rows = Some(vec![4, 1]),
        &["--decode-rows 4,1", "ascend"],
    );
    check_refused(
        |wish| wish.prefill_tokens = Some(vec![]),
        &["--prefill-tokens"],
    );
    check_refused(
        |wish| wish.context_pages = Some(vec![0, 9]),
        &["--context-pages 0,9", "start from 1"],
    );
    check_refused(
        |wish| wish.context_pages = Some(vec![8, 64]),
        &["has 256 pages of 32", "--max-context 2048"],
    );
    check_refused(
        |wish| wish.kv_pages = Some(255),
        &["255 KV pages", "--kv-pages 256"],
    );
    check_refused(|wish| wish.candidates = Some(1000), &["from 1 to 256"]);
    check_refused(
        |wish| wish.prefill_tokens = Some(vec![9000]),
        &["prefill-1x9000x0"],
    );
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    // 15 GiB of weights on a core of 16.
    check_refused(
        |wish| wish.ranks = 1,
        &["one sequence of 8192", "weights", "ranks"],
    );
    check_refused(
        |wish| wish.kv_pages = Some(100_000),
        &["(100000 pages)", "KV pages (", "--kv-pages"],
    );
    check_refused(
        |wish| {
            wish.ranks = 2;
            wish.demand.context = 131_072;
        },
        &["one sequence of 131072", "at most", "--max-context"],
    );
}

#[test]
fn padding_is_what_a_smaller_step_wastes() {
    let plan = plan(&wish(Target::Trn2, 4)).unwrap();
    let of = |name: &str| {
        let Named(bucket) = name.parse().unwrap();
        plan.padding(bucket)
    };
    let check = |name: &str, worst: f64, mean: f64| {
        let Padding {
            worst: most,
            mean: middle,
        } = of(name);
        assert!(
            (most - worst).abs() < 1e-9 && (middle - mean).abs() < 1e-9,
            "{name}: {:?}",
            of(name)
        );
    };
    // One row of a module for one; 1 to 16 pages.
    check("decode-1x16", 1.0 - 1.0 / 16.0, 1.0 - 8.5 / 16.0);
    // 17 to 64 rows, 65 to 256 pages.
    check(
        "decode-64x256",
        1.0 - 17.0 / 64.0 * 65.0 / 256.0,
        1.0 - 40.5 / 64.0 * 160.5 / 256.0,
    );
    // No pages, so no page is padding.
    check("prefill-1x128x0", 1.0 - 1.0 / 128.0, 1.0 - 64.5 / 128.0);
    check(
        "prefill-1x512x256",
        1.0 - 129.0 / 512.0 * 17.0 / 256.0,
        1.0 - 320.5 / 512.0 * 136.5 / 256.0,
    );
    check("copy-8", 1.0 - 1.0 / 8.0, 1.0 - 4.5 / 8.0);
}

#[test]
fn buckets_are_read_as_they_are_named() {
    let mut wish = wish(Target::Trn2, 4);
    wish.embeddings = true;
    for bucket in plan(&wish).unwrap().buckets {
        assert_eq!(bucket.name().parse::<Named>().unwrap(), Named(bucket));
    }
    for text in [
        "",
        "decode",
        "decode-4",
        "prefill-1x1x4",
        "copy-1-each",
        "decode-4x8-all",
        "decode-4xx",
    ] {
        let error = text.parse::<Named>().unwrap_err().to_string();
        assert!(error.contains("decode-ROWSxPAGES"), "{error}");
    }
}

#[test]
fn a_step_of_one_token_needs_no_chunks() {
    let mut wish = wish(Target::Trn2, 4);
    (
        wish.demand.step_tokens,
        wish.demand.context,
        wish.demand.rows,
    ) = (1, 1, 1);
    let plan = plan(&wish).unwrap();
    assert_eq!(names(&plan), ["decode-1x1", "decode-1x1-each", "copy-8"]);
}
