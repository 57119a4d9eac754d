//! Whether a requirement holds, and which part of it does not.

use super::{Comparison, Fact, Node, Operand, Value, What};
use crate::base::{Bytes, text};

type Facts<'f, 'a> = &'f dyn Fn(&Fact) -> Option<Value<'a>>;

pub(super) fn facts<'n>(node: &'n Node, found: &mut dyn FnMut(&'n Fact)) {
    let mut operand = |operand: &'n Operand| {
        if let Operand::Fact(fact) = operand {
            found(fact);
        }
    };
    match &node.what {
        What::And(a, b) | What::Or(a, b) => {
            facts(a, found);
            facts(b, found);
        }
        What::Not(a) => facts(a, found),
        What::Compare { left, right, .. } => {
            operand(left);
            operand(right);
        }
        What::In { fact, .. } => found(fact),
        What::Is(of) => operand(of),
    }
}

pub(super) fn holds(node: &Node, facts: Facts<'_, '_>) -> bool {
    match &node.what {
        What::And(a, b) => holds(a, facts) && holds(b, facts),
        What::Or(a, b) => holds(a, facts) || holds(b, facts),
        What::Not(a) => !holds(a, facts),
        What::Compare { left, how, right } => compare(left, *how, right, facts),
        What::In { fact, list } => {
            let value = facts(fact);
            list.iter().any(|l| value == Some(l.value()))
        }
        What::Is(Operand::Fact(fact)) => facts(fact) == Some(Value::Bool(true)),
        What::Is(Operand::Literal(literal)) => literal.value() == Value::Bool(true),
    }
}

fn compare(left: &Operand, how: Comparison, right: &Operand, facts: Facts<'_, '_>) -> bool {
    // The order of a size, a number; texts and truths are only equal or not.
    let ordering = |a: Value<'_>, b: Value<'_>| match (a, b) {
        (Value::Size(a), Value::Size(b)) => Some(a.cmp(&b)),
        (Value::Number(a), Value::Number(b)) => a.partial_cmp(&b),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(&b)),
        _ => None,
    };
    let left = match left {
        Operand::Fact(fact) => facts(fact),
        Operand::Literal(literal) => Some(literal.value()),
    };
    let right = match right {
        Operand::Fact(fact) => facts(fact),
        Operand::Literal(literal) => Some(literal.value()),
    };
    let Some(order) = left.zip(right).and_then(|(a, b)| ordering(a, b)) else {
        return how == Comparison::NotEqual;
    };
    match how {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::AtMost => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::AtLeast => order.is_ge(),
    }
}

/// The smallest part that decides that it does not hold.
pub(super) fn why(text: &str, node: &Node, facts: Facts<'_, '_>) -> String {
    match &node.what {
        What::And(a, b) => {
            let failing = if holds(a, facts) { b } else { a };
            return why(text, failing, facts);
        }
        What::Compare { left: Operand::Fact(fact), .. } | What::In { fact, .. } => {
            return format!("{} fails: {fact} is {}", written(text, node), shown(facts(fact)));
        }
        What::Compare { right: Operand::Fact(fact), .. } => {
            return format!("{} fails: {fact} is {}", written(text, node), shown(facts(fact)));
        }
        _ => {}
    }
    format!("{} fails", written(text, node))
}

fn written(text: &str, node: &Node) -> String {
    text::clean(text.get(node.from..node.to).unwrap_or(text), 120)
}

fn shown(value: Option<Value<'_>>) -> String {
    match value {
        None => "not known".to_owned(),
        Some(Value::Size(n)) => Bytes(n).to_string(),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Text(t)) => format!("'{}'", text::clean(t, 60)),
        Some(Value::Bool(b)) => b.to_string(),
    }
}
