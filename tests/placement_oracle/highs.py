"""As much of OR-tools' `cp_model` as cpsat.py uses, for HiGHS (highspy from PyPI): the same model, another solver."""

import time

import highspy
import numpy

OPTIMAL, FEASIBLE, UNKNOWN = range(3)


class Bound:
    """`expr <= 0` or `expr == 0`."""

    def __init__(self, expr, equal):
        self.expr, self.equal = expr, equal

    def __bool__(self):
        # As in lists that are compared: the same variable or another one.
        return self.equal and not any(self.expr.terms.values()) and self.expr.constant == 0


class Expr:
    def __init__(self, terms=None, constant=0):
        self.terms, self.constant = terms or {}, constant

    def add(self, other, sign=1):
        terms = dict(self.terms)
        if isinstance(other, Expr):
            for v, c in other.terms.items():
                terms[v] = terms.get(v, 0) + sign * c
            return Expr(terms, self.constant + sign * other.constant)
        return Expr(terms, self.constant + sign * other)

    def __add__(self, other):
        return self.add(other)

    __radd__ = __add__

    def __sub__(self, other):
        return self.add(other, -1)

    def __rsub__(self, other):
        return (self * -1).add(other)

    def __mul__(self, factor):
        return Expr({v: c * factor for v, c in self.terms.items()}, self.constant * factor)

    __rmul__ = __mul__

    def __neg__(self):
        return self * -1

    def __le__(self, other):
        return Bound(self - other, False)

    def __ge__(self, other):
        return Bound(other - self if isinstance(other, Expr) else (self * -1).add(other), False)

    def __eq__(self, other):
        return Bound(self - other, True)

    def __hash__(self):
        return id(self)


class CpModel:
    def __init__(self):
        self.upper, self.rows, self.goal, self.start = [], [], None, None
        self.proto = self

    @property
    def variables(self):
        return []  # Hints are given by `start`.

    def new_bool_var(self, name):
        return self.new_int_var(0, 1, name)

    def new_int_var(self, low, high, _name):
        assert low == 0
        self.upper.append(high)
        return Expr({len(self.upper) - 1: 1})

    def add(self, bound):
        if isinstance(bound, bool):
            assert bound
            return
        self.rows.append(bound)

    def minimize(self, goal):
        self.goal = goal

    def clear_hints(self):
        pass


class Parameters:
    num_workers = 1
    max_time_in_seconds = 60.0


class CpSolver:
    def __init__(self):
        self.parameters = Parameters()

    def solve(self, model):
        begun = time.monotonic()
        h = highspy.Highs()
        h.setOptionValue("output_flag", False)
        h.setOptionValue("threads", self.parameters.num_workers)
        h.setOptionValue("time_limit", self.parameters.max_time_in_seconds)
        h.setOptionValue("mip_rel_gap", 0.0)
        lp = highspy.HighsLp()
        n = len(model.upper)
        lp.num_col_, lp.num_row_ = n, len(model.rows)
        cost = numpy.zeros(n)
        for v, c in model.goal.terms.items():
            cost[v] += c
        lp.col_cost_ = cost
        lp.col_lower_, lp.col_upper_ = numpy.zeros(n), numpy.array(model.upper, dtype=float)
        lp.integrality_ = [highspy.HighsVarType.kInteger] * n
        start, index, value, low, high = [0], [], [], [], []
        for row in model.rows:
            for v, c in row.expr.terms.items():
                if c:
                    index.append(v)
                    value.append(float(c))
            start.append(len(index))
            high.append(float(-row.expr.constant))
            low.append(float(-row.expr.constant) if row.equal else -highspy.kHighsInf)
        lp.row_lower_, lp.row_upper_ = numpy.array(low), numpy.array(high)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = numpy.array(start)
        lp.a_matrix_.index_ = numpy.array(index)
        lp.a_matrix_.value_ = numpy.array(value)
        h.passModel(lp)
        if model.start is not None:
            solution = highspy.HighsSolution()
            solution.col_value = list(model.start)
            h.setSolution(solution)
        h.run()
        self.wall_time = time.monotonic() - begun
        info = h.getInfo()
        status = h.getModelStatus()
        if info.primal_solution_status != 2:
            return UNKNOWN
        model.start = [round(x) for x in h.getSolution().col_value]
        self.objective_value = info.objective_function_value + model.goal.constant
        self.best_objective_bound = info.mip_dual_bound + model.goal.constant
        return OPTIMAL if status == highspy.HighsModelStatus.kOptimal else FEASIBLE

    def status_name(self, status):
        return ["OPTIMAL", "FEASIBLE", "UNKNOWN"][status]
