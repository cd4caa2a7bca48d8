//! What follows attention in a layer: a gated MLP, or the experts that each token chose.

use std::ops::Range;
use std::sync::Mutex;

use model::Mlp;

use crate::decoder::{Worker, for_each, group, lock, multiply, resize};
use crate::kernels::{Blocks, Kernels, LANES, Sum};
use crate::pool::Pool;
use crate::weights::{Gated, Linear};

/// How each token chooses among experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// How many it passes.
    pub(crate) chosen: usize,
    /// Whether their probabilities are divided by their sum.
    pub(crate) renormalise: bool,
}

/// What is computed on the way, of all tokens of a step.
#[derive(Default, Debug)]
pub(crate) struct Memory {
    /// Inside the MLP; inside each expert, one after the other.
    inner: Vec<f32>,
    /// Scores of the experts.
    scores: Vec<f32>,
    /// What each expert computes from, one after the other.
    inputs: Vec<f32>,
    /// By expert, then by row.
    routes: Vec<Route>,
}

/// Memory of one worker.
#[derive(Default, Debug)]
pub(crate) struct Scratch {
    up: Vec<f32>,
    down: Vec<f32>,
    ranked: Vec<(f32, usize)>,
}

/// That a row passes an expert, and how much of what comes out is added.
#[derive(Clone, Copy, Default, Debug)]
struct Route {
    expert: usize,
    row: usize,
    weight: f32,
}

/// An expert, and those of its rows among all routes.
struct Share<'a> {
    expert: &'a Gated,
    routes: &'a [Route],
    /// The routes before.
    before: usize,
}

/// Some columns inside an expert.
struct Task<'a> {
    share: usize,
    /// The first panel.
    first: usize,
    out: &'a mut [f32],
}

/// Who computes, and how.
pub(crate) struct Feed<'a> {
    pub(crate) pool: &'a mut Pool,
    pub(crate) kernels: &'static dyn Kernels,
    pub(crate) workers: &'a [Mutex<Worker>],
}

impl Feed<'_> {
    /// Adds what `mlp` makes of `normed` to `hidden`.
    pub(crate) fn gated(
        &mut self,
        mlp: &Gated,
        normed: Blocks<'_>,
        memory: &mut Memory,
        hidden: &mut [f32],
    ) {
        let (kernels, workers, rows) = (self.kernels, self.workers, normed.rows);
        let panels = group(self.pool, mlp.gate.matrix.panels());
        let inner = &mut memory.inner;
        resize(inner, mlp.gate.matrix.columns(), rows);
        let size = panels * rows * LANES;
        self.pool.for_each_chunk(inner, size, &|worker, task, out| {
            let scratch = &mut lock(&workers[worker]).mlp.up;
            mlp.inside(kernels, normed, task * panels, out, scratch);
        });
        let data = &inner[..];
        let input = Blocks { data, rows };
        multiply(self.pool, kernels, input, &mlp.down, hidden, Sum::Add);
    }

    /// Adds what the experts that each row chose make of `normed` to `hidden`, each times its
    /// probability. The weights of an expert are read once, for all rows that chose it; what a row
    /// passes is added up in the order of the experts, whatever other rows choose.
    pub(crate) fn experts(
        &mut self,
        router: &Linear,
        experts: &[Gated],
        choice: Choice,
        normed: Blocks<'_>,
        memory: &mut Memory,
        hidden: &mut [f32],
    ) {
        let Memory {
            inner,
            scores,
            inputs,
            routes,
        } = memory;
        resize(scores, experts.len(), normed.rows);
        multiply(self.pool, self.kernels, normed, router, scores, Sum::Store);
        let data = &scores[..];
        let rows = normed.rows;
        self.route(Blocks { data, rows }, experts.len(), choice, routes);
        let shares: Vec<_> = shares(routes)
            .map(|range| Share {
                expert: &experts[routes[range.start].expert],
                before: range.start,
                routes: &routes[range],
            })
            .collect();
        self.gather(&shares, normed, inputs);
        let width = inputs.len() / routes.len();
        let columns = experts[0].gate.matrix.panels() * LANES;
        inner.resize(columns * routes.len(), 0.0);
        self.inside(&shares, inputs, width, inner);
        self.add(&shares, inner, columns, rows, hidden);
    }

    /// Chooses the experts of each row.
    fn route(
        &mut self,
        scores: Blocks<'_>,
        experts: usize,
        choice: Choice,
        routes: &mut Vec<Route>,
    ) {
        let rows = scores.rows;
        routes.clear();
        routes.resize(rows * choice.chosen, Route::default());
        let workers = self.workers;
        for_each(
            self.pool,
            rows,
            routes,
            choice.chosen,
            &|worker, row, out| {
                let ranked = &mut lock(&workers[worker]).mlp.ranked;
                choice.choose(scores.row(row).flatten().take(experts), ranked);
                for (out, (weight, expert)) in out.iter_mut().zip(&*ranked) {
                    let (weight, expert) = (*weight, *expert);
                    *out = Route {
                        expert,
                        row,
                        weight,
                    };
                }
            },
        );
        routes.sort_unstable_by_key(|route| (route.expert, route.row));
    }

    /// Copies the rows of each share side by side, as blocks of their own.
    fn gather(&mut self, shares: &[Share<'_>], normed: Blocks<'_>, inputs: &mut Vec<f32>) {
        let width = normed.data.len() / normed.rows;
        let routes: usize = shares.iter().map(|share| share.routes.len()).sum();
        inputs.resize(routes * width, 0.0);
        let mut rest = &mut inputs[..];
        let mut outs: Vec<_> = shares
            .iter()
            .map(|share| rest.split_off_mut(..share.routes.len() * width))
            .collect();
        for_each(self.pool, routes, &mut outs, 1, &|_, index, outs| {
            for out in outs.iter_mut().flat_map(|out| out.iter_mut()) {
                let routes = shares[index].routes;
                let blocks = out.chunks_mut(routes.len() * LANES);
                for (out, block) in blocks.zip(normed.data.chunks(normed.rows * LANES)) {
                    for (out, route) in out.chunks_mut(LANES).zip(routes) {
                        out.copy_from_slice(&block[route.row * LANES..][..LANES]);
                    }
                }
            }
        });
    }

    /// Computes the inside of each share, `width` inputs a row.
    fn inside(&mut self, shares: &[Share<'_>], inputs: &[f32], width: usize, inner: &mut [f32]) {
        let (kernels, workers) = (self.kernels, self.workers);
        let mut rest = inner;
        let mut tasks = Vec::new();
        for (index, share) in shares.iter().enumerate() {
            let panels = share.expert.gate.matrix.panels();
            let some = group(self.pool, panels);
            for first in (0..panels).step_by(some) {
                let size = some.min(panels - first) * share.routes.len() * LANES;
                let out = rest.split_off_mut(..size).unwrap_or_default();
                let share = index;
                tasks.push(Task { share, first, out });
            }
        }
        self.pool
            .for_each_chunk(&mut tasks, 1, &|worker, _, tasks| {
                let scratch = &mut lock(&workers[worker]).mlp.up;
                for Task { share, first, out } in tasks {
                    let share = &shares[*share];
                    let input = share.blocks(inputs, width);
                    share.expert.inside(kernels, input, *first, out, scratch);
                }
            });
    }

    /// Adds what comes out of each share to the rows of `hidden` that it is for; `columns` numbers
    /// a row are inside.
    fn add(
        &mut self,
        shares: &[Share<'_>],
        inner: &[f32],
        columns: usize,
        rows: usize,
        hidden: &mut [f32],
    ) {
        let (kernels, workers, block) = (self.kernels, self.workers, rows * LANES);
        let panels = group(self.pool, hidden.len() / block);
        let work = |worker: usize, task: usize, out: &mut [f32]| {
            let scratch = &mut lock(&workers[worker]).mlp.down;
            for share in shares {
                let (routes, input) = (share.routes, share.blocks(inner, columns));
                scratch.resize(out.len() / block * routes.len() * LANES, 0.0);
                let down = &share.expert.down;
                down.product(kernels, input, task * panels, scratch, Sum::Store);
                let blocks = scratch.chunks(routes.len() * LANES);
                for (out, given) in out.chunks_mut(block).zip(blocks) {
                    for (given, route) in given.chunks(LANES).zip(routes) {
                        let out = &mut out[route.row * LANES..][..LANES];
                        let pairs = out.iter_mut().zip(given);
                        pairs.for_each(|(out, given)| *out += route.weight * given);
                    }
                }
            }
        };
        self.pool.for_each_chunk(hidden, panels * block, &work);
    }
}

impl Gated {
    /// Some columns of the inside: those of the panels from `first` on that `out` has room for.
    fn inside(
        &self,
        kernels: &dyn Kernels,
        input: Blocks<'_>,
        first: usize,
        out: &mut [f32],
        up: &mut Vec<f32>,
    ) {
        up.resize(out.len(), 0.0);
        self.gate.product(kernels, input, first, out, Sum::Store);
        self.up.product(kernels, input, first, up, Sum::Store);
        kernels.silu_gate(out, up);
    }
}

impl Share<'_> {
    /// Its part of `data`, which has `width` numbers for each route.
    fn blocks<'a>(&self, data: &'a [f32], width: usize) -> Blocks<'a> {
        let rows = self.routes.len();
        Blocks {
            data: &data[self.before * width..][..rows * width],
            rows,
        }
    }
}

impl Choice {
    /// As `mlp` has it; there is none where it is gated.
    pub(crate) fn of(mlp: &Mlp) -> Self {
        Self {
            chosen: mlp.chosen() as usize,
            renormalise: matches!(
                mlp,
                Mlp::Experts {
                    renormalise: true,
                    ..
                }
            ),
        }
    }

    /// Leaves the probabilities of the chosen in `ranked`, with their experts, the highest first;
    /// of equal scores the first expert's.
    fn choose<'a>(self, scores: impl Iterator<Item = &'a f32>, ranked: &mut Vec<(f32, usize)>) {
        ranked.clear();
        ranked.extend(scores.copied().zip(0..));
        let most = ranked.iter().map(|(score, _)| *score);
        let most = most.fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for (score, _) in &mut *ranked {
            let part = (*score - most).exp();
            sum += part;
        }
        ranked.sort_unstable_by(|one, other| {
            let scores = other.0.total_cmp(&one.0);
            scores.then(one.1.cmp(&other.1))
        });
        ranked.truncate(self.chosen);
        for (score, _) in &mut *ranked {
            *score = (*score - most).exp() / sum;
        }
        if self.renormalise {
            let sum: f32 = ranked.iter().map(|(weight, _)| weight).sum();
            ranked.iter_mut().for_each(|(weight, _)| *weight /= sum);
        }
    }
}

/// The routes of each expert that has any.
fn shares(routes: &[Route]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    let runs = routes.chunk_by(|one, other| one.expert == other.expert);
    runs.map(move |run| {
        start += run.len();
        start - run.len()..start
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(renormalise: bool, chosen: usize, scores: &[f32]) -> Vec<(f32, usize)> {
        let choice = Choice {
            chosen,
            renormalise,
        };
        let mut ranked = Vec::new();
        choice.choose(scores.iter(), &mut ranked);
        ranked
    }

    #[test]
    fn the_most_probable_experts_are_chosen_with_their_probabilities() {
        let ln = |probability: f32| probability.ln() + 7.0;
        let scores = [0.125, 0.5, 0.125, 0.25].map(ln);
        let check = |found: Vec<(f32, usize)>, expected: &[(f32, usize)]| {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.1, expected.1);
                assert!((found.0 - expected.0).abs() < 1e-6, "{found:?}");
            }
        };
        let all = [(0.5, 1), (0.25, 3), (0.125, 0), (0.125, 2)];
        check(chosen(false, 4, &scores), &all);
        check(chosen(false, 3, &scores), &all[..3]);
        check(chosen(true, 2, &scores), &[(2.0 / 3.0, 1), (1.0 / 3.0, 3)]);
        check(chosen(true, 1, &scores), &[(1.0, 1)]);
    }

    #[test]
    fn each_expert_has_the_rows_that_chose_it() {
        let routes = [0, 0, 2, 5, 5, 5].map(|expert| Route {
            expert,
            ..Route::default()
        });
        let found: Vec<_> = shares(&routes).collect();
        assert_eq!(found, [0..2, 2..3, 3..6]);
        assert_eq!(shares(&[]).count(), 0);
    }
}
