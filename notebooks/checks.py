"""What the notebooks say of an answer: whether two ways to one number agree, and whether an exercise is solved.

The solutions stand in solutions.md.
"""

import torch

HINTS = {  # by exercise, "2.1" for the first of notebook 02
    "1.1": "the ratio of two probabilities is exp((z_j − z_k) / T). Set it to one half, and solve for T.",
    "1.2": "at T = 1 it rests where p_S = α p_T + (1 − α) e_y. Set the first two entries equal, and solve for α.",
    "1.3": "multiply the mixed second derivative −α (diag(q) − q qᵀ) by −z_dot. The mean of z_dot appears, with q.",
    "2.1": "the quiz loss is least where the meta-gradient is zero. It is negative at 0° and positive at 120°: halve "
    "the interval between them, again and again, and keep the half in which the sign changes.",
    "2.2": "autograd.grad without create_graph returns plain numbers. Is there any way back from them to the teacher?",
    "2.3": "the chain rule once more: how L_q changes with θ′_S, times how θ′_S = θ_S − λ ∇L_S changes with λ.",
    "3.1": "follow the page: p_T at θ_T = 0 (does T matter there?), M = −p_T (1 − p_T) x xᵀ, v = (σ(0) − y_q) x_q.",
    "3.2": "each example gives a block diag(p) − p pᵀ. What does the block do to the vector (1, 1, ..., 1)?",
    "3.3": "at T → ∞ every probability is 1/K. Put that into p_k and into the mean price.",
    "3.4": "ρ_q = p(1 | x_q) − y_q, and p is 0.5 everywhere. Average ρ over 30 with y_q = 1 and 10 with y_q = 0.",
    "3.5": "the second step starts from the result of the first. Hand that result to `at` as it is, without detaching it.",
    "4.1": "start from the sentences that the large model has right. Which of them does the student miss? Which others "
    "does it have?",
    "4.2": "reader and raters agree where both are right, and where both are wrong. Add the two shares.",
    "4.3": "with μ = 0 the teacher stays as it came. Which row of train.METHODS has such a teacher, and the quiz's labels?",
    "5.1": "a window of 32 × 32 lies in a frame of 40 × 40. How many places are there from top to bottom, and from left "
    "to right? Each window can also be mirrored.",
    "5.2": "a picture contributes +1, −1 or 0. The variance is the mean of the squares less the square of the mean. "
    "Divide by N, and take the root.",
    "5.3": "put p = 1 for one class and p = 0 for the others into the mean Σ p_j z_dot_j, then into p_k (z_dot_k − mean).",
    "6.1": "put α = 0 into L_S. Which term is left? Does the teacher stand in it?",
    "6.2": "the half-width is t_{n−1} · 2 / √n. Compute it for n = 2, 3, 4, ..., and stop at the first below 2.",
    "6.3": "first the five differences, then their mean and their standard deviation s. t_4 is train.T_QUANTILES[3].",
}


def agree(what, mine, other, tolerance=1e-9):
    """Print the largest difference between two answers to one question, and insist that there is none to speak of."""
    mine, other = (torch.as_tensor(answer, dtype=torch.float64) for answer in (mine, other))
    difference = (mine - other).abs().max().item()
    assert difference < tolerance, f"{what}: {difference} apart"
    print(f"{what}: they agree (largest difference {difference:.0e})")


def exercise(name, answer, is_right):
    """Print the hint while the answer is blank (...); else whether it is right. is_right: answer -> truth."""
    if answer is ...:
        print(f"Exercise {name}, still blank. Hint: {HINTS[name]}")
        return
    try:
        right = bool(is_right(answer))
    except Exception as error:  # an answer of another kind, such as a word for a number
        print(f"Exercise {name}: this cannot be checked ({type(error).__name__}: {error})")
        return
    print(f"Exercise {name}: right." if right else f"Exercise {name}: not yet. Hint: {HINTS[name]}")
