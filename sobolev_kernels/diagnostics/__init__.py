"""What is looked at beside a training: errors of derivatives, targets that do not fit, the balance of terms."""
