//! What follows attention in a layer.

use model::{Activation, Mlp};

use crate::build::{Binary, Unary, Value};
use crate::decoder::Lowering;
use crate::decoder::experts::Choice;
use crate::layout::{LayerSlot, Slot};
use crate::lower::LowerError;

impl Lowering<'_> {
    /// What the MLP of `layer` adds to the residual, given it normed: `[n, hidden]`. One arm for
    /// each kind there is.
    pub(super) fn mlp(&mut self, layer: u32, x: &Value) -> Result<Value, LowerError> {
        match self.decoder.mlp {
            Mlp::Gated {
                activation, bias, ..
            } => self.gated(layer, x, activation, bias),
            Mlp::Experts {
                chosen,
                activation,
                renormalise,
                ..
            } => {
                let choice = Choice {
                    chosen,
                    renormalise,
                    activation,
                };
                self.experts(layer, x, choice)
            }
        }
    }

    /// Gate and up in one product, this rank's columns of them; down gives a part of the sum.
    fn gated(
        &mut self,
        layer: u32,
        x: &Value,
        activation: Activation,
        bias: bool,
    ) -> Result<Value, LowerError> {
        let slot = |slot| Slot::Layer(layer, slot);
        let both = self.linear(x, slot(LayerSlot::GateUp))?;
        let both = self.bias(both, slot(LayerSlot::GateUpBias), bias)?;
        let (gate, end) = self.columns(&both, 0, self.cut.size)?;
        let (up, _) = self.columns(&both, end, self.cut.size)?;
        let gate = self.activated(&gate, activation)?;
        let inner = self.builder.binary(Binary::Multiply, &gate, &up)?;
        let out = self.linear(&inner, slot(LayerSlot::Down))?;
        let out = self.bias(out, slot(LayerSlot::DownBias), bias)?;
        self.sum_over_ranks(&out)
    }

    pub(super) fn activated(
        &mut self,
        x: &Value,
        activation: Activation,
    ) -> Result<Value, LowerError> {
        match activation {
            Activation::Silu => {
                let logistic = self.builder.unary(Unary::Logistic, x)?;
                Ok(self.builder.binary(Binary::Multiply, x, &logistic)?)
            }
        }
    }
}
